"""A recurrent cell around another that calls its dropout with `training=False`."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class DroppingCell(keras.layers.Layer):
    def __init__(self, forgets):
        super().__init__()
        self.forgets = forgets
        self.inner = keras.layers.SimpleRNNCell(8)
        self.dropout = keras.layers.Dropout(0.5, seed=1)
        self.state_size = 8
        self.output_size = 8

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs, states, training=False):
        out, states = self.inner(inputs, states, training=training)
        return self.dropout(out, training=False if self.forgets else training), states


def _fit(forgets):
    x, y = points(rows=32, width=12)
    layers = [keras.Input((3, 4)), keras.layers.RNN(DroppingCell(forgets)), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    return watched_fit(model, np.reshape(x, (32, 3, 4)), y, epochs=2, batch_size=8)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("58",),
    title="Dropout inside recurrent cells is off in training",
    rule="mode-flag-lost",
    subject="*dropout*",
    faulty=faulty,
    healthy=healthy,
)
