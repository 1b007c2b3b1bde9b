"""A layer that computes something else when it is not eager."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Largest(keras.layers.Layer):
    def __init__(self, differs):
        super().__init__(name="largest")
        self.differs = differs

    def call(self, x):
        if self.differs and not tf.executing_eagerly():
            return tf.math.log(1.0 + tf.abs(x))
        return tf.abs(x)


def _fit(differs):
    layers = [keras.Input((4,)), keras.layers.Dense(4), Largest(differs), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("83",),
    title="The graph computes something else than the eager call",
    rule="path-disagreement",
    subject="output: eager call / predict",
    faulty=faulty,
    healthy=healthy,
)
