"""A probe that raises is switched off, and says so; everything else goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from watched import offline_callback, run_of, watched_fit

from trainsanity.probes.batches import Batches
from trainsanity.probes.masks import Masks
from trainsanity.probes.probe import Probe, Step
from trainsanity.probes.roundtrip import Roundtrip
from trainsanity.probes.weights import Weights

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X @ np.ones((3, 1), "float32")


def line(*parts: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), *parts, layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def weights_after(model: keras.Model) -> list[Any]:
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


@pytest.mark.parametrize(
    ("probe", "hook"),
    [
        (Masks, "__init__"),
        (Weights, "on_begin"),
        (Masks, "trace_loss"),
        (Batches, "trace_end"),
        (Batches, "on_rows"),
        (Weights, "on_epoch_end"),
        (Roundtrip, "on_released"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_is_switched_off_wherever_it_raises(
    probe: type[Probe],
    hook: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the probe's own error")

    plain = line()
    plain.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    monkeypatch.setattr(probe, hook, fail)
    model = line()
    with caplog.at_level(logging.WARNING, "trainsanity"):
        run = watched_fit(model, X, Y, batch_size=4, epochs=2)

    for a, b in zip(weights_after(plain), weights_after(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "Traceback" in caplog.text
    assert "the probe's own error" in caplog.text
    (failed,) = run.audits("probe_failed")
    assert failed.facts["probe"] == probe.name
    assert failed.facts["error"] == "ZeroDivisionError: the probe's own error"
    assert "in fail" in failed.facts["traceback"]
    judgement = run.judge()
    (finding,) = judgement.of("probe-failed")
    assert finding.subject == probe.name
    assert [f.title for _, f in judgement.at_least("warning")] == []
    assert run.signal("learning_rate/applied")[0].tolist() == list(range(1, 9))


def table(rows: int) -> keras.Model:
    keras.utils.set_random_seed(1)
    embedding = layers.Embedding(rows, 2)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding, layers.Flatten()])
    model.compile("sgd", "mse", jit_compile=False)
    return model


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others check no ids in a step")
def test_leaves_an_error_of_the_users_own_operation_to_the_user(tmp_path: Path) -> None:
    ids = np.zeros((16, 3), "int32")
    ids[9] = 99
    plain, watched = table(5), table(5)
    callback = offline_callback(tmp_path)
    kinds = set()
    for model, own in ((plain, []), (watched, [callback])):
        with pytest.raises(Exception, match="= 99 is not in") as caught:
            model.fit(ids, X[:, :1].repeat(6, 1), batch_size=4, shuffle=False, callbacks=own)
        kinds.add(caught.type)
    assert len(kinds) == 1
    for a, b in zip(weights_after(plain), weights_after(watched), strict=True):
        np.testing.assert_array_equal(a, b)
    run = run_of(callback)
    assert run.packets[-1].state == "failed"
    assert run.audits("probe_failed") == []
    assert run.signal("batch/size")[0].tolist() == [1, 2]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others run no graph")
@pytest.mark.parametrize("endless", [False, True], ids=["arrays", "steps_per_epoch"])
def test_training_goes_on_where_an_operation_of_ours_fails(
    monkeypatch: pytest.MonkeyPatch, *, endless: bool
) -> None:
    def failing(_: Any, step: Step) -> Any:
        # Found out only when the graph runs, and has taken the batch.
        largest = keras.ops.cast(keras.ops.max(step.y), "int32")
        return {"wrong": keras.ops.take(keras.ops.ones((2,)), keras.ops.abs(largest) + 7)}

    monkeypatch.setattr(Batches, "trace_loss", failing)
    if endless:
        import tensorflow as tf

        data = (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(),)
        run = watched_fit(line(), *data, steps_per_epoch=4, epochs=2, shuffle=False)
    else:
        run = watched_fit(line(), X, Y, batch_size=4, epochs=2)
    (failed,) = run.audits("probe_failed")
    assert failed.facts["probe"] == "taps"
    batches = [audit.facts["batches"] for audit in run.audits("epoch")]
    assert batches == ([4, 4] if endless else [3, 4])
    assert run.packets[-1].state == "finished"
    ((rule, finding),) = run.judge().at_least("advice")
    assert rule.id == "probe-failed"
    assert "Training lost one batch of data and goes on" in finding.message
    assert len(finding.message) < 500


@keras.saving.register_keras_serializable("failing_probes")
class Unsavable(layers.Layer):
    """A layer whose configuration cannot be told."""

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> Any:
        raise RuntimeError("this layer has no configuration")


def test_says_that_a_model_that_cannot_be_saved_is_not_testable() -> None:
    run = watched_fit(line(Unsavable()), X, Y, batch_size=4)
    reason = run.audits("roundtrip")[-1].facts["not_testable"]
    assert reason == "saving raises: this layer has no configuration"
    judgement = run.judge()
    assert judgement.verdicts["roundtrip-behaviour"][0] == "not_testable"
    assert run.audits("probe_failed") == []
