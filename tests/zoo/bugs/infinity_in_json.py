"""A configuration that holds infinity is no JSON for a strict reader."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(largest):
    relu = keras.layers.ReLU(max_value=largest)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4), relu, keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(float("inf"))


def healthy():
    return _fit(1e6)


CASE = Case(
    bugs=("6",),
    title="The saved configuration contains Infinity",
    rule="roundtrip-structure",
    subject="saved configuration",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    live=True,
)
