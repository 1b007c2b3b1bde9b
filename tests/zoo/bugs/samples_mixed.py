"""A bidirectional layer made by hand that flips the batch axis instead of time."""

import keras
import numpy as np
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case


class BothWays(keras.layers.Layer):
    def __init__(self, axis):
        super().__init__(name="both_ways")
        self.axis = axis
        self.forward = keras.layers.SimpleRNN(4)
        self.backward = keras.layers.SimpleRNN(4)

    def build(self, shape):
        self.forward.build(shape)
        self.backward.build(shape)

    def call(self, x):
        flipped = ops.flip(x, axis=self.axis)
        return ops.concatenate([self.forward(x), self.backward(flipped)], axis=-1)


def _fit(axis):
    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    model = keras.Sequential([keras.Input((5, 3)), BothWays(axis), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, x, x[:, 0, :1], epochs=2, batch_size=8)


def faulty():
    return _fit(0)


def healthy():
    return _fit(1)


CASE = Case(
    bugs=("11",),
    title="Samples of a batch are mixed with each other",
    rule="path-disagreement",
    subject="output: in a batch / alone",
    faulty=faulty,
    healthy=healthy,
)
