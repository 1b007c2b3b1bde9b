"""`clipnorm=0` is skipped without a word."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(clipnorm):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, clipnorm=clipnorm), "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(0.0)


def healthy():
    return _fit(0.1)


CASE = Case(
    bugs=("9",),
    title="Declared gradient clipping is not applied",
    rule="clip-bound-exceeded",
    subject="optimizer.clipnorm",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
