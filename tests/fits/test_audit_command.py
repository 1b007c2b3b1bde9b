"""`trainsanity audit` on saved models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from keras import layers

import trainsanity
from trainsanity.cli import main
from trainsanity.errors import SampleRefused

IDS = np.random.default_rng(0).integers(1, 20, (8, 6))
IDS[:, 4:] = 0
TAGS = IDS % 3


def tagger(path: Path, *, keeps_mask: bool) -> Path:
    keras.utils.set_random_seed(0)
    ids = keras.Input((6,), dtype="int32", name="ids")
    tokens = layers.Embedding(20, 4, mask_zero=True)(ids)
    deep = layers.Dense(4)(tokens)
    joined = layers.Add()([tokens, deep]) if keeps_mask else tokens + deep
    model = keras.Model({"ids": ids}, layers.Dense(3, activation="softmax")(joined))
    model.compile("sgd", "sparse_categorical_crossentropy")
    file = path / "tagger.keras"
    model.save(file)
    return file


def rows(path: Path, **arrays: Any) -> Path:
    file = path / "sample.npz"
    np.savez(file, **arrays)
    return file


def audit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


@pytest.mark.parametrize(("keeps_mask", "status"), [(False, 1), (True, 0)])
def test_finds_a_lost_mask_in_a_file(tmp_path: Path, keeps_mask: bool, status: int) -> None:
    model = tagger(tmp_path, keeps_mask=keeps_mask)
    named = {"x:ids": IDS, "y": TAGS}
    done = audit(model, "--data", rows(tmp_path, **named), "--fail-on", "warning")
    assert done.exit_code == status, done.output
    assert ("mask" in done.output and "add" in done.output) or keeps_mask


def test_says_what_the_archive_lacks(tmp_path: Path) -> None:
    model = tagger(tmp_path, keeps_mask=True)
    done = audit(model, "--data", rows(tmp_path, inputs=IDS))
    assert (done.exit_code, "['inputs']" in done.output) == (2, True)


def test_rows_that_do_not_fit_the_model_are_no_good_news(tmp_path: Path) -> None:
    model = tagger(tmp_path, keeps_mask=True)
    done = audit(model, "--data", rows(tmp_path, x=IDS[:, :2].astype("float32")))
    assert (done.exit_code, "do not go through the model" in done.output) == (2, True)
    assert "no findings" not in done.output


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (IDS[:0], TAGS[:0], r"at least one. Received: x of \[0\], y of \[0\]"),
        (IDS, TAGS[:3], r"Received: x of \[8\], y of \[3\]"),
        (IDS.tolist(), TAGS, "Received: int. Lists of numbers need numpy.asarray"),
        (iter(()), None, "next\\(iter\\(dataset\\)\\)"),
        (None, None, "x must be the rows"),
    ],
)
def test_refuses_what_is_no_sample(x: Any, y: Any, told: str) -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    with pytest.raises(SampleRefused, match=told):
        trainsanity.audit(model, x, y)
    with pytest.raises(SampleRefused, match="Received: Dense"):
        trainsanity.audit(model.layers[0], IDS)


def test_rows_without_labels_for_them_end_the_command(tmp_path: Path) -> None:
    model = tagger(tmp_path, keeps_mask=True)
    done = audit(model, "--data", rows(tmp_path, **{"x:ids": IDS, "y": TAGS[:3]}))
    assert (done.exit_code, "must have the same rows" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("last", "x", "told"),
    [
        (layers.Dense(3), IDS, "cannot be evaluated on these rows: evaluate raises: ValueError"),
        (layers.Dense(3), IDS[:, :2], "the rows do not go through the model: .*expected axis -1"),
    ],
)
def test_what_the_model_does_not_take_is_no_fault_of_a_probe(last: Any, x: Any, told: str) -> None:
    """Labels of the wrong kind, and rows of the wrong width: in the words of Keras."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), last])
    model.compile("sgd", "categorical_crossentropy")
    report = trainsanity.audit(model, x.astype("float32"), TAGS[:, 0])
    assert re.search(told, str(report), re.IGNORECASE)
    assert not report.run.audits("probe_failed")
    assert "no findings" not in str(report)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY", b"PK\x03\x04"])
def test_says_that_the_data_is_no_archive(tmp_path: Path, content: bytes) -> None:
    data = tmp_path / "rows.npz"
    data.write_bytes(content)
    done = audit(tagger(tmp_path, keeps_mask=True), "--data", data)
    assert (done.exit_code, "numpy.savez" in done.output) == (2, True)


def test_says_that_a_file_is_no_model(tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    model.write_bytes(b"no model")
    done = audit(model, "--data", rows(tmp_path, x=IDS))
    assert (done.exit_code, "trainsanity.audit(model, x, y)" in done.output) == (2, True)


def test_an_audit_leaves_metrics_and_functions_as_they_were(tmp_path: Path) -> None:
    model = keras.saving.load_model(tagger(tmp_path, keeps_mask=True))
    x = {"ids": IDS}
    model.evaluate(x, TAGS, verbose=0)
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.metrics_variables]
    function = model.test_function
    audited = trainsanity.audit(model, x, TAGS)
    assert model.test_function is function
    for variable, value in zip(model.metrics_variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    shown = audited.run.signal("loss/reported")[1]
    assert shown == pytest.approx(model.evaluate(x, TAGS, verbose=0), rel=1e-6)


def test_lists_what_was_compared_before_what_was_not(tmp_path: Path) -> None:
    model = tagger(tmp_path, keeps_mask=True)
    done = audit(model, "--data", rows(tmp_path, **{"x:ids": IDS, "y": TAGS}))
    listed = done.output.partition("VERDICT")[2]
    verdicts = [word for word in listed.split() if word in ("alert", "ok", "not_testable")]
    assert verdicts == sorted(verdicts, key=["alert", "ok", "not_testable"].index)
    assert {"ok", "not_testable"} <= set(verdicts)
