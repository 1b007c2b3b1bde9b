"""Optimizers that a step applies in a branch or function of its own within the compiled step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import offline_callback, run_of

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(96, 8)).astype("float32")
Y = X.sum(axis=1, keepdims=True)

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")


class InJax(keras.Model):
    """Updates in a branch that is always taken, or in a function compiled by itself."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.inner = keras.Sequential([keras.Input((8,)), layers.Dense(4, "relu"), layers.Dense(1)])
        self.branches = branches

    def call(self, x: Any, training: bool = False) -> Any:
        return self.inner(x)

    def train_step(self, state: Any, data: Any) -> Any:
        import jax

        weights, others, slots, metrics = state
        x, y = data

        def loss_of(weights: Any) -> Any:
            prediction, _ = self.stateless_call(weights, others, x, training=True)
            return keras.ops.mean((prediction - y) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(weights)

        def update(weights: Any, slots: Any) -> Any:
            weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
            return list(weights), list(slots)

        if self.branches:
            weights, slots = jax.lax.cond(loss >= 0, update, lambda *old: old, weights, slots)
        else:
            weights, slots = jax.jit(update)(weights, slots)
        return {"loss": loss}, (weights, others, slots, metrics)


class InTensorFlow(InJax):
    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        weights = self.inner.trainable_variables
        with tf.GradientTape() as tape:
            prediction = self(x, training=True)
            loss = self.compute_loss(x, y, prediction)
        gradients = tape.gradient(loss, weights)

        def update() -> Any:
            self.optimizer.apply(gradients, weights)
            return 0

        if self.branches:
            tf.cond(loss >= 0, update, lambda: 0)
        else:
            tf.function(update)()
        return self.compute_metrics(x, y, prediction, None) | {"loss": loss}


@pytest.mark.parametrize("branches", [True, False])
def test_trains_as_without_the_callback_and_says_what_it_does_not_see(
    branches: bool, tmp_path: Any
) -> None:
    found = []
    callback = offline_callback(tmp_path)
    for ours in ([], [callback]):
        keras.utils.set_random_seed(3)
        model = (InJax if BACKEND == "jax" else InTensorFlow)(branches=branches)
        model.build((None, 8))
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.optimizer.build(model.inner.trainable_variables)
        history = model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=ours)
        weights = [keras.ops.convert_to_numpy(w).tobytes() for w in model.weights]
        found.append((history.history, weights))
    assert found[0] == found[1]

    run = run_of(callback)
    assert run.audits("probe_failed") == []
    reasons = run.audits("columns")[-1].facts["not_testable"]
    assert "traced by itself" in reasons["learning_rate/effective"]
