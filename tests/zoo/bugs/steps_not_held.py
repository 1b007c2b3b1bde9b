"""Finite data under `steps_per_epoch`: 8, 2, 8, 2 steps where 8 were declared."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(data):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, data, steps_per_epoch=8, epochs=4)


def _data():
    return tf.data.Dataset.from_tensor_slices(points(rows=80)).batch(8)


def faulty():
    return _fit(_data())


def healthy():
    return _fit(_data().repeat())


CASE = Case(
    bugs=("22",),
    title="An epoch has another number of steps than was declared",
    rule="step-count-mismatch",
    subject="epoch",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
