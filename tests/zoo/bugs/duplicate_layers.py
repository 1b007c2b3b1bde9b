"""A layer that builds two inner copies and uses one."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Wrapped(keras.layers.Layer):
    def __init__(self, copies):
        super().__init__(name="wrapped")
        self.inner = [keras.layers.Dense(2) for _ in range(copies)]

    def build(self, shape):
        for layer in self.inner:
            layer.build(shape)

    def call(self, x):
        return self.inner[0](x)


def _fit(copies):
    model = keras.Sequential([keras.Input((4,)), Wrapped(copies), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=4)


def faulty():
    return _fit(2)


def healthy():
    return _fit(1)


CASE = Case(
    bugs=("79",),
    title="A second, unused copy of a layer takes memory",
    rule="structure-mismatch",
    subject="*/wrapped/dense_1",
    faulty=faulty,
    healthy=healthy,
)
