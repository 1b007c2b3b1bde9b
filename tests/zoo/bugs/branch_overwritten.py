"""A layer that overwrites an entry of its input dict: a branch of the model has no effect."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Scale(keras.layers.Layer):
    def __init__(self, overwrites):
        super().__init__(name="scale")
        self.overwrites = overwrites

    def call(self, parts):
        if self.overwrites:
            parts["b"] = parts["a"]
        return 2.0 * parts["a"] + parts["b"]


def _fit(overwrites):
    x, y = points()
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    parts = {"a": keras.layers.Dense(4, name="kept")(a), "b": keras.layers.Dense(4, name="lost")(b)}
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(Scale(overwrites)(parts)))
    model.compile("sgd", "mse")
    return watched_fit(model, {"a": x, "b": np.flip(x, 0)}, y, epochs=3, batch_size=4)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("15",),
    title="A branch of the model is overwritten",
    rule="dead-weights",
    subject="*lost*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="What summary() prints is not read; the branch without effect is found.",
)
