"""A step that is watched is traced and compiled as often as one that is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.watched import offline_callback

from trainsanity import backends, forward, sample_audits
from trainsanity.probes.probe import Update


class Counted(keras.layers.Layer):
    """Counts how often it is traced in training."""

    traces = 0

    def call(self, x: Any, training: bool | None = None) -> Any:
        self.traces += bool(training) and backends.active().is_traced(x)
        return x


def traces(*callbacks: Any) -> int:
    counted = Counted()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(counted(inputs)))
    model.compile("adam", "mse", metrics=["mae"])
    before = counted.traces
    x, y = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[*callbacks])
    return counted.traces - before


def test_compiles_a_step_as_often_as_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("START_UP_SECONDS", "EPOCH_END_SECONDS", "LAST_SECONDS"):
        monkeypatch.setattr(sample_audits, name, 0.0)  # audits trace the model too
    assert traces(offline_callback(tmp_path)) == traces()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow counts traces")
def test_traces_of_audits_are_not_held_against_the_user() -> None:
    import tensorflow as tf

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    def trace_one_more() -> None:
        tf.function(lambda x: x + 1.0)(tf.constant(1.0))

    heard: list[str] = []
    handler = Heard()
    tf.get_logger().addHandler(handler)
    try:
        with forward.unwarned():
            for _ in range(8):
                trace_one_more()
        for _ in range(4):
            trace_one_more()
        assert heard == []
        trace_one_more()  # the user's own fifth
        assert "triggered tf.function retracing" in heard[0]
    finally:
        tf.get_logger().removeHandler(handler)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="TorchDynamo is PyTorch's")
def test_an_update_is_carried_over_a_break_of_the_graph() -> None:
    """As where gradients are accumulated: what Dynamo cannot make anew would end the training."""
    import torch

    optimizer, weight = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    optimizer.build([weight])
    seen: list[Any] = []

    def step(gradient: Any) -> Any:
        update = Update("", optimizer, [gradient], [gradient], [weight], {})
        seen.append(update)
        torch._dynamo.graph_break()
        return update.in_turn(lambda: gradient + 1)

    compiled = torch.compile(step, backend="eager")
    assert compiled(torch.ones(1)).tolist() == [2.0]
    assert len(seen) == 1
