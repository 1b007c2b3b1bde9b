"""`trainable` changed after a traced fit, without compiling again: the step goes on training it."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(compile_again):
    frozen = keras.layers.Dense(8, activation="relu", name="frozen")
    model = keras.Sequential([keras.Input((4,)), frozen, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(*points(), batch_size=8, verbose=0)
    frozen.trainable = False
    if compile_again:
        model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(False)


def healthy():
    return _fit(True)


CASE = Case(
    bugs=("73",),
    title="A layer frozen after the first fit goes on learning",
    rule="frozen-weights-moved",
    subject="*frozen*",
    faulty=faulty,
    healthy=healthy,
    not_reachable="The reporter's own training loop, and its true cause, are not known.",
    live=True,
)
