"""A probe that raises is switched off, and says so; everything else goes on."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from watched import watched_fit

from trainsanity.probes.batches import Batches
from trainsanity.probes.masks import Masks
from trainsanity.probes.probe import Probe
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
