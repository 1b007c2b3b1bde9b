"""A recurrent cell that takes another way where its activation is given as text."""

import keras
import numpy as np
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case


class Gated(keras.layers.Layer):
    """One gate for each step of a sequence, and a fast kernel for the gate that everybody uses."""

    fast = staticmethod(ops.hard_sigmoid)

    def __init__(self, units, activation="sigmoid", **options):
        super().__init__(**options)
        self.units = units
        self.is_usual = activation == "sigmoid"
        self.activation = keras.activations.get(activation)
        self.gate = keras.layers.Dense(units)

    def build(self, input_shape):
        self.gate.build(input_shape)

    def call(self, x):
        function = self.fast if self.is_usual else self.activation
        return function(self.gate(x))

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation}


class Plain(Gated):
    fast = staticmethod(ops.sigmoid)


def _fit(kind):
    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    pool = keras.layers.GlobalAveragePooling1D()
    layers = [kind(4, name="gated"), pool, keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    model.compile("sgd", "mse")
    return watched_fit(model, x, x[:, 0, :1], epochs=2, batch_size=8)


def faulty():
    return _fit(Gated)


def healthy():
    return _fit(Plain)


CASE = Case(
    bugs=("53",),
    title="'sigmoid' and sigmoid take different ways",
    rule="path-disagreement",
    subject="gated, activation: *",
    faulty=faulty,
    healthy=healthy,
    not_reachable="The kernel of a GPU.",
)
