"""`compute_output_shape` says 2, `call` returns 4; Keras believes it."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Says(keras.layers.Layer):
    def __init__(self, width):
        super().__init__(name="says")
        self.width = width

    def call(self, x):
        return 1.0 * x

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)


class Head(keras.layers.Layer):
    def call(self, x):
        return keras.ops.mean(x, axis=-1, keepdims=True)


def _fit(width):
    layers = [keras.Input((4,)), keras.layers.Dense(4), Says(width), Head()]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(2)


def healthy():
    return _fit(4)


CASE = Case(
    bugs=("1",),
    title="A layer declares another shape than it returns",
    rule="shape-declared-vs-actual",
    subject="*says*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    live=True,
)
