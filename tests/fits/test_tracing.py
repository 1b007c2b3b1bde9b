"""A step that is watched is traced and compiled as often as one that is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.watched import offline_callback, watched_fit

from trainsanity import backends, sample_audits
from trainsanity.probes.learning_rate import LearningRate
from trainsanity.probes.losses import Losses
from trainsanity.probes.probe import Step, Update


class Counted(keras.layers.Layer):
    """Counts how often it is traced in training."""

    traces = 0

    def call(self, x: Any, training: bool | None = None) -> Any:
        self.traces += bool(training) and backends.active().is_traced(x)
        return x


def traces(optimizer: str, *callbacks: Any, tf_data: bool, jit_compile: Any) -> int:
    counted = Counted()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(counted(inputs)))
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    before = counted.traces
    arrays = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
    data: Any = {"x": arrays[0], "y": arrays[1], "batch_size": 4}
    if tf_data:
        tf = pytest.importorskip("tensorflow")
        data = {"x": tf.data.Dataset.from_tensor_slices(arrays).batch(4)}
    model.fit(**data, shuffle=False, verbose=0, callbacks=[*callbacks])
    return counted.traces - before


@pytest.mark.parametrize(
    ("optimizer", "tf_data", "jit_compile"),
    [("adam", False, "auto"), ("sgd", False, "auto")]
    + [("sgd", True, "auto"), ("adam", True, True)] * (keras.backend.backend() == "tensorflow"),
)
def test_compiles_a_step_as_often_as_keras(
    optimizer: str,
    tf_data: bool,
    jit_compile: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the step makes no variables of its own."""
    for name in ("START_UP_SECONDS", "EPOCH_END_SECONDS", "LAST_SECONDS"):
        monkeypatch.setattr(sample_audits, name, 0.0)  # audits trace the model too
    options = {"tf_data": tf_data, "jit_compile": jit_compile}
    watched = traces(optimizer, offline_callback(tmp_path), **options)
    assert watched == traces(optimizer, **options)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="traces once")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])  # with slots, and without any variables
def test_measures_in_the_trace_that_is_run(
    optimizer: str, jit_compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Step] = []
    trace_end = LearningRate.trace_end

    def noted(probe: LearningRate, step: Step) -> Any:
        found = trace_end(probe, step)
        assert not (step.is_rehearsal and found)
        asked.append(step)
        return found

    monkeypatch.setattr(LearningRate, "trace_end", noted)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    x, y = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
    run = watched_fit(model, x, y, batch_size=4, options={"audit_budget": 0.0})
    assert [step.is_rehearsal for step in asked].count(False) == 1
    steps, rates = run.signal("learning_rate/effective")
    assert steps.tolist() == [1, 2, 3]
    assert np.all(rates > 0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="traces once")
@pytest.mark.parametrize("optimizer", ["adam", "sgd", keras.optimizers.SGD(momentum=0.9)])
def test_measures_nothing_in_a_trace_that_is_thrown_away(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    trace_loss = Losses.trace_loss

    def noted(probe: Losses, step: Step) -> Any:
        asked.append(step.is_rehearsal)
        return trace_loss(probe, step)

    monkeypatch.setattr(Losses, "trace_loss", noted)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse")
    x, y = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
    run = watched_fit(model, x, y, batch_size=4, options={"audit_budget": 0.0})
    assert asked == [False]
    assert run.signal("loss/recomputed")[0].tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_measures_where_nothing_is_trained() -> None:
    """An optimizer that has nothing to keep makes no variables, and the first trace is run."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.trainable = False
    model.compile("adam", "mse")
    x, y = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
    run = watched_fit(model, x, y, batch_size=4, options={"audit_budget": 0.0})
    assert run.signal("loss/recomputed")[0].tolist() == [1, 2, 3]


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
        with backends.active().own_traces():
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
