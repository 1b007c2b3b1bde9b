"""Rotated images carry a black border into training."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case


def _fit(fill):
    x = np.random.default_rng(0).uniform(0.2, 1.0, size=(64, 12, 12, 1)).astype("float32")
    rotation = keras.layers.RandomRotation(0.3, fill_mode=fill, fill_value=0.0)
    layers = [keras.Input((12, 12, 1)), rotation, keras.layers.Conv2D(2, 3)]
    model = keras.Sequential(
        [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    return watched_fit(model, x, x.mean(axis=(1, 2)), epochs=3, batch_size=8)


def faulty():
    return _fit("constant")


def healthy():
    return _fit("reflect")


CASE = Case(
    bugs=("32",),
    title="Augmentation draws black borders",
    rule="input-drift",
    subject="input",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Whether a border is wanted is the user's choice.",
    live=True,
)
