"""State that audits might move on: it is what it was, wherever a model keeps it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from tests.watched import offline_callback, run_of


class Clipped(layers.Dense):
    """Writes to its own weights, as constraints of old did."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        if training:
            self.kernel.assign(ops.clip(self.kernel, -0.3, 0.3))
        return super().call(inputs)


class Annealed(keras.losses.Loss):
    """Keeps a variable that no model knows."""

    def __init__(self) -> None:
        super().__init__(name="annealed")
        self.calls = keras.Variable(0.0, trainable=False, name="calls")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.calls.assign_add(1.0)
        error = ops.mean(ops.square(y_true - y_pred), axis=-1)
        return error * ops.minimum(1.0, self.calls / 20.0)


class Jittered(layers.Layer):
    """Draws from a generator of its own, counts and notes its calls: Keras knows of none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(4)
        self.calls = 0
        self.scales: list[float] = []

    def call(self, inputs: Any, training: Any = None) -> Any:
        if not training:
            return inputs
        self.calls += 1
        self.scales.append(self.calls / (self.calls + 1))
        noise = self.generator.normal(size=(6,)).astype("float32")
        return inputs + ops.convert_to_tensor(self.scales[-1] * noise)


def clipped() -> keras.Model:
    return _compiled(keras.Sequential([keras.Input((6,)), Clipped(8), layers.Dense(1)]))


def normalized() -> keras.Model:
    inner = layers.SpectralNormalization(layers.Dense(8, activation="relu"))
    return _compiled(keras.Sequential([keras.Input((6,)), inner, layers.Dense(1)]))


def stateful() -> keras.Model:
    rows = keras.Input(batch_shape=(8, 6))
    state = layers.LSTM(4, stateful=True)(layers.Reshape((3, 2))(rows))
    return _compiled(keras.Model(rows, layers.Dense(1)(state)))


def annealed() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    return _compiled(model, loss=Annealed())


def jittered() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), Jittered(), layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def beside_keras() -> keras.Model:
    """With what only the backend knows of: buffers, variables, generators."""
    return _compiled(keras.Sequential([keras.Input((6,)), _of_the_backend(), layers.Dense(1)]))


def _of_the_backend() -> layers.Layer:
    if keras.backend.backend() == "torch":
        import torch

        return layers.TorchModuleWrapper(torch.nn.BatchNorm1d(6))
    import tensorflow as tf

    class Centred(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.mean = tf.Variable(tf.zeros(6), trainable=False)
            self.noise = tf.random.Generator.from_seed(3)

        def call(self, inputs: Any, training: Any = None) -> Any:
            if training:
                self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(inputs, 0))
                inputs += self.noise.normal(tf.shape(inputs), stddev=0.1)
            return inputs - self.mean

    return Centred()


def _compiled(model: keras.Model, loss: Any = "mse") -> keras.Model:
    model.compile("adam", loss, metrics=["mae"])
    return model


def trained(make: Callable[[], keras.Model], *callbacks: Any) -> list[Any]:
    keras.utils.set_random_seed(3)
    model = make()
    x = np.random.default_rng(1).normal(size=(48, 6)).astype("float32")
    history = model.fit(x, x[:, :1], batch_size=8, epochs=3, verbose=0, callbacks=[*callbacks])
    states = [v for layer in model.layers for v in getattr(layer, "states", None) or []]
    loss = getattr(model.loss, "calls", None)
    kept = [*model.variables, *states, *([] if loss is None else [loss])]
    for layer in model.layers:
        if keras.backend.backend() == "torch":
            kept += [buffer.clone() for buffer in layer.buffers()]
        kept += [getattr(layer, "mean", 0.0), getattr(layer, "calls", 0)]
    return [history.history, [keras.ops.convert_to_numpy(v) for v in kept]]


def seeded() -> keras.Model:
    """With operations of TensorFlow's own that draw their seeds as they run."""
    import tensorflow as tf

    class Noisy(layers.Layer):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return inputs + tf.random.normal(tf.shape(inputs)) if training else inputs

    tf.random.set_seed(3)
    model = keras.Sequential([keras.Input((6,)), Noisy(), layers.Dense(1)])
    model.compile("adam", "mse", run_eagerly=True)
    return model


MODELS = [clipped, normalized, annealed, jittered]
if keras.backend.backend() == "tensorflow":
    MODELS.append(seeded)
if keras.backend.backend() != "torch":  # where Keras itself fails to train the stateful one
    MODELS.append(stateful)
if keras.backend.backend() != "jax":
    MODELS.append(beside_keras)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.filterwarnings("ignore:.*stateful.*")
def test_training_is_the_same_where_a_pass_moves_state_on(
    make: Callable[[], keras.Model], tmp_path: Any
) -> None:
    alone = trained(make)
    callback = offline_callback(tmp_path, audit_budget=1.0)
    watched = trained(make, callback)
    assert watched[0] == alone[0]
    for mine, own in zip(watched[1], alone[1], strict=True):
        np.testing.assert_array_equal(mine, own)
    assert not run_of(callback).audits("probe_failed")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own switch")
def test_deterministic_operations_lose_nothing(tmp_path: Any) -> None:
    import tensorflow as tf
    from tensorflow.python.framework import config

    tf.config.experimental.enable_op_determinism()
    try:
        alone = trained(annealed)
        callback = offline_callback(tmp_path)
        assert trained(annealed, callback)[0] == alone[0]
    finally:
        config.disable_op_determinism()
    assert not run_of(callback).audits("probe_failed")
    assert len(run_of(callback).signal("loss/recomputed")[0]) == 18


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's strategies")
def test_a_strategy_of_one_replica_is_watched_like_none(tmp_path: Any) -> None:
    import tensorflow as tf

    def mirrored() -> keras.Model:
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            return _compiled(keras.Sequential([keras.Input((6,)), layers.Dense(1)]))

    callback = offline_callback(tmp_path, audit_budget=1.0)
    trained(mirrored, callback)
    run = run_of(callback)
    assert not run.audits("probe_failed")
    assert not run.judge().at_least("warning")
    assert len(run.signal("learning_rate/effective")[0])


class Ends(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            self.model.stop_training = True


class StochasticDepth(layers.Layer):
    """As in examples of Keras: its class and its attributes do not say that it has two modes."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, inputs: Any, training: Any = None) -> Any:
        if not training:
            return inputs
        kept = keras.random.uniform((ops.shape(inputs)[0], 1), seed=self.seeds) > 0.4
        return ops.where(kept, inputs / 0.6, 0.0)


def deep() -> keras.Model:
    parts = [layers.Dense(8), StochasticDepth(), layers.Dense(1)]
    return _compiled(keras.Sequential([keras.Input((6,)), *parts]))


@pytest.mark.parametrize("others", [(), (Ends(),)])
def test_nothing_is_said_of_a_layer_with_two_modes_or_an_end_in_an_epoch(
    others: tuple[Any, ...], tmp_path: Any
) -> None:
    callback = offline_callback(tmp_path, audit_budget=1.0)
    trained(deep, callback, *others)
    assert not run_of(callback).judge().at_least("warning")


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is compiled")
def test_fits_one_after_another_keep_nothing(tmp_path: Any) -> None:
    """On JAX what loops were compiled to, on TensorFlow gradients of its own, which it never
    forgets, and of which Keras itself leaves some.
    """
    make = recurrent if keras.backend.backend() == "jax" else deep
    kept = []
    for place in range(5):
        keras.backend.clear_session()
        others = [offline_callback(tmp_path / str(place), audit_budget=1.0)] if place < 3 else []
        trained(make, *others)
        del others
        kept.append(_compiled_things())
    assert kept[2] - kept[1] <= kept[4] - kept[3]


def recurrent() -> keras.Model:
    rows = keras.Input((6,))
    return _compiled(
        keras.Model(rows, layers.Dense(1)(layers.LSTM(4)(layers.Reshape((3, 2))(rows))))
    )


def _compiled_things() -> int:
    gc.collect()
    if keras.backend.backend() == "jax":
        import jax

        return len(jax.devices()[0].client.live_executables())
    from tensorflow.python.framework import ops as framework

    return len(framework.gradient_registry.list())  # each holds the graph of a whole step
