"""A layer that hides a dimension which never changes."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Hiding(keras.layers.Layer):
    def __init__(self, hides):
        super().__init__(name="hiding")
        self.hides = hides

    def call(self, x):
        return 1.0 * x

    def compute_output_spec(self, x):
        width = None if self.hides else x.shape[-1]
        return keras.KerasTensor((x.shape[0], width), x.dtype)


def _fit(hides):
    mean = keras.layers.Lambda(lambda x: x[:, :1], output_shape=(1,))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), Hiding(hides), mean])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("21", "26", "48"),
    title="A dimension that never changes is declared unknown",
    rule="shape-declared-vs-actual",
    subject="*hiding*",
    in_words=True,
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="An unknown dimension contradicts none, so this is advice.",
)
