"""State in a raw `tf.Variable`: Keras neither trains nor saves it."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Scale(keras.layers.Layer):
    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def build(self, shape):
        if self.raw:
            self.factor = tf.Variable(1.0)
        else:
            self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.factor


def _fit(raw):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), Scale(raw)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("12",),
    title="A raw variable is neither trained nor saved",
    rule="untracked-weights",
    subject="*scale/Variable*",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
