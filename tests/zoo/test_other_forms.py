"""Failures of the zoo in other code than the zoo's, each beside a near miss that is healthy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from tests.watched import watched_fit
from tests.zoo.data import points

from trainsanity.spooled import SpooledRun

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="the zoo is made for TensorFlow"
    ),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def alarms(run: SpooledRun) -> set[tuple[str, str]]:
    """Rules that spoke at `warning` or above, with their subjects."""
    assert not run.audits("probe_failed")
    return {(rule.id, finding.subject) for rule, finding in run.judge().at_least("warning")}


def network(*more: Any) -> keras.Sequential:
    return keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="tanh"), *more])


class WholeBatch(keras.losses.Loss):
    """One number for the batch, with an axis left of it."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.reshape(ops.mean(ops.square(y_true - y_pred)), (1,))


@pytest.mark.parametrize(
    ("least", "found"), [(0.1, {("sample-weight-effect", "loss")}), (1, set())]
)
def test_a_loss_of_one_number_under_sample_weights(least: float, found: set[Any]) -> None:
    """Of `tf.data` not even the shapes tell before the run that weights and loss part."""
    import tensorflow as tf

    x, y = points()
    weights = np.linspace(least, 1, len(x)).astype("float32")
    model = network(layers.Dense(1))
    model.compile("sgd", WholeBatch())
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(16)
    assert alarms(watched_fit(model, data, epochs=1)) == found


class MeanOfSquares(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


class Pairs(keras.losses.Loss):
    """Compares samples with each other on purpose, whatever the shape of the labels."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = ops.reshape(y_true, (-1,)), ops.reshape(y_pred, (-1,))
        apart = (y_true[:, None] - y_true) - (y_pred[:, None] - y_pred)
        return ops.mean(ops.square(apart), axis=-1)


@pytest.mark.parametrize(
    ("loss", "flat", "found"),
    [
        (MeanOfSquares, True, {("loss-broadcast", "loss")}),
        (MeanOfSquares, False, set()),
        (Pairs, True, set()),
    ],
)
def test_labels_that_broadcast_inside_of_a_mean(loss: Any, flat: bool, found: set[Any]) -> None:
    """The mean leaves as many elements as there are samples."""
    x, y = points()
    model = network(layers.Dense(1))
    model.compile("sgd", loss())
    run = watched_fit(model, x, y[:, 0] if flat else y, epochs=1, batch_size=16)
    assert alarms(run) == found


@pytest.mark.parametrize(("bias", "found"), [(-50.0, {("dead-weights", "end")}), (1.0, set())])
def test_a_relu_at_the_end_that_is_dead_from_the_start(bias: float, found: set[Any]) -> None:
    """Weight decay still moves the weights."""
    x, y = points()
    start = keras.initializers.Constant(bias)
    model = network(layers.Dense(1, bias_initializer=start), layers.ReLU(name="end"))
    model.compile(keras.optimizers.AdamW(0.01), "mae")
    assert alarms(watched_fit(model, x, np.abs(y), epochs=2, batch_size=8)) == found


@pytest.mark.parametrize("kind", ["learnt", "constant", "steered"])
def test_a_variable_that_only_the_loss_reads(kind: str) -> None:
    """Keras looks for no weights there; a callback may steer one that says it is trainable."""
    x, y = points()
    spread = keras.Variable(0.5, trainable=kind != "constant", name="spread")

    def likelihood(y_true: Any, y_pred: Any) -> Any:
        return ops.exp(-spread) * ops.mean(ops.square(y_true - y_pred), axis=-1) + spread

    model = network(layers.Dense(1))
    model.compile("sgd", likelihood)
    grow = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: spread.assign(epoch))
    run = watched_fit(
        model, x, y, batch_size=8, epochs=2, callbacks=[grow] if kind == "steered" else []
    )
    expected = {("untracked-weights", "the loss: spread")} if kind == "learnt" else set()
    assert alarms(run) == expected


def test_a_layer_that_forgets_half_precision_on_reload() -> None:
    """A Sequential has no tensors in its configuration that would give it away."""
    policy = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    drop, dense = (
        layers.SpatialDropout1D(0.1, dtype=policy, name="drop"),
        layers.Dense(1, dtype=policy),
    )
    model = keras.Sequential([keras.Input((4, 1)), drop, dense, layers.Flatten()])
    model.compile("sgd", "mse")
    x, y = points()
    run = watched_fit(model, x[..., None], y, batch_size=8, epochs=1)
    assert not alarms(run)
    found = run.judge().of("roundtrip-structure")
    assert [finding.subject for finding in found] == ["dtype policy of drop"]


class OwnStep(keras.Model):
    told: Any = None

    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=self.told)
            loss = self.compute_loss(x, y, y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.metrics[0].update_state(loss)
        return self.compute_metrics(x, y, y_pred)


@pytest.mark.parametrize(
    ("told", "found"), [(None, {("mode-flag-lost", "drop")}), (True, set()), (False, set())]
)
def test_a_train_step_that_forgets_to_say_that_it_trains(told: Any, found: set[Any]) -> None:
    x, y = points()
    inputs = keras.Input((4,))
    hidden = layers.Dropout(0.5, name="drop")(layers.Dense(8)(inputs))
    model = OwnStep(inputs, layers.Dense(1)(hidden))
    model.told = told
    model.compile("sgd", "mse")
    assert alarms(watched_fit(model, x, y, batch_size=8, epochs=1)) == found


class OwnStepWithoutMetrics(keras.Model):
    """Live in Keras 3.15.1: the loss of the epoch is 0, whatever the step returns."""

    returns: Any

    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss} if self.returns == "the loss" else self.get_metrics_result()


@pytest.mark.parametrize(("returns", "found"), [("the loss", "critical"), ("metrics", "warning")])
def test_a_train_step_that_updates_no_metric(returns: str, found: str) -> None:
    x, y = points(rows=32)
    inputs = keras.Input((4,))
    model = OwnStepWithoutMetrics(inputs, layers.Dense(1)(inputs))
    model.returns = returns
    model.compile("sgd", "mse")
    run = watched_fit(model, x, y, batch_size=8, epochs=1)
    said = [(rule.id, f.severity or rule.severity) for rule, f in run.judge().at_least("warning")]
    assert said == [("epoch-aggregation-mismatch", found)]


@pytest.mark.parametrize(("rows", "found"), [(40, {"one_loss", "two_loss"}), (48, set())])
def test_losses_of_single_outputs_after_a_short_batch(rows: int, found: set[str]) -> None:
    """A plain mean of batches in Keras 3.15.1, where the graph does not know their rows."""
    x, y = points(rows=rows)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(1, name=name)(inputs) for name in ("one", "two")])
    model.compile("sgd", ["mse", "mae"], loss_weights=[0.5, 2.0])
    run = watched_fit(model, x, [y, y], batch_size=16, epochs=1)
    assert not alarms(run)
    assert {f.subject for f in run.judge().of("epoch-aggregation-mismatch")} == found


class OwnLoss(keras.Model):
    weighs = True

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        losses = ops.square(y - y_pred)
        if sample_weight is not None and self.weighs:
            losses = losses * ops.reshape(sample_weight, (-1, 1))
        return ops.mean(losses)


@pytest.mark.parametrize(
    ("weighs", "flat", "found"),
    [
        (False, False, {("sample-weight-effect", "loss")}),
        (True, False, set()),
        (True, True, {("loss-broadcast", "loss")}),
    ],
)
def test_a_compute_loss_of_ones_own(weighs: bool, flat: bool, found: set[Any]) -> None:
    x, y = points()
    inputs = keras.Input((4,))
    model = OwnLoss(inputs, layers.Dense(1)(inputs))
    model.weighs = weighs
    model.compile("sgd")
    weights = np.linspace(0.1, 2, len(x)).astype("float32")
    y = y[:, 0] if flat else y
    assert alarms(watched_fit(model, x, y, sample_weight=weights, epochs=1)) == found


@pytest.mark.parametrize("normalized", [1, 2])
def test_validation_data_that_was_normalized_twice(normalized: int) -> None:
    x = np.random.default_rng(0).normal(100, 20, (64, 4)) * [1, 10, 100, 1000]
    mean, spread = x.mean(axis=0), x.std(axis=0)
    other = x[40:]
    for _ in range(normalized):
        other = (other - mean) / spread
    y = x[:, :1] / 100
    model = network(layers.Dense(1))
    model.compile("sgd", "mse")
    run = watched_fit(
        model, (x[:40] - mean) / spread, y[:40], epochs=1, validation_data=(other, y[40:])
    )
    assert not alarms(run)
    assert len(run.judge().of("input-drift")) == normalized - 1


def test_a_layer_that_is_unfrozen_for_the_next_phase_when_this_one_ends() -> None:
    """A file written now would be loaded with more slots than the optimizer has."""
    x, y = points(rows=32)
    model = network(layers.Dense(1))
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    thaw = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: setattr(model.layers[0], "trainable", True)
    )
    assert not alarms(watched_fit(model, x, y, epochs=1, callbacks=[thaw]))
