"""A stopped gradient inside the loss: what is shown is not what is descended."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def half_stopped(labels, outputs):
    error = labels - outputs
    return ops.mean(ops.stop_gradient(error) * error, axis=-1)


def _fit(loss):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", loss)
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(half_stopped)


def healthy():
    return _fit("mse")


CASE = Case(
    bugs=("43",),
    title="The gradient is not that of the loss shown",
    rule="gradient-mismatch",
    faulty=faulty,
    healthy=healthy,
    advice=True,
    subject="dense",
    not_reachable="A loop of one's own; and advice, as some stop gradients on purpose.",
)
