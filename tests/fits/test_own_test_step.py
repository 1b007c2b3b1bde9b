"""A test_step of the user's and the mode in which it runs the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import watched_fit

X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="the steps below are those of the other backends"
)


class Own(keras.Model):
    in_training = False

    def test_step(self, data: Any) -> Any:
        x, y = data
        prediction = self(x, training=self.in_training)
        loss = self.compute_loss(x, y, prediction)
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, prediction)


class Mistaken(Own):
    in_training = True


class WithoutFlag(Own):
    in_training = None


@pytest.mark.parametrize(("kind", "told"), [(Mistaken, 1), (Own, 0), (WithoutFlag, 0)])
def test_evaluation_in_training_mode_is_told(kind: type[Own], told: int) -> None:
    assert _subjects(kind, layers.Dropout(0.5)) == ["test_step: training=True"] * told


def test_it_matters_not_without_layers_that_act_otherwise() -> None:
    assert _subjects(Mistaken, layers.Dense(4)) == []


def _subjects(kind: type[Own], layer: layers.Layer) -> list[str]:
    inputs = keras.Input((6,))
    model = kind(inputs, layers.Dense(1)(layer(layers.Dense(16)(inputs))))
    model.compile("adam", "mse")
    run = watched_fit(model, X, X[:, :1], batch_size=8, validation_split=1 / 3, epochs=2)
    return [finding.subject for _, finding in run.judge().at_least("warning")]
