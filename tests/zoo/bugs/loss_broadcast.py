"""A loss of one's own between (N,) labels and (N, 1) outputs becomes an N by N matrix."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Own(keras.losses.Loss):
    def call(self, labels, outputs):
        return ops.square(labels - outputs)


def _fit(labels):
    x, y = points()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", Own())
    return watched_fit(model, x, labels(y), epochs=2, batch_size=8)


def faulty():
    return _fit(lambda y: y[:, 0])


def healthy():
    return _fit(lambda y: y)


CASE = Case(
    bugs=("78", "80"),
    title="Labels and outputs of different rank are broadcast in the loss",
    rule="loss-broadcast",
    subject="loss",
    faulty=faulty,
    healthy=healthy,
    not_reachable="78: Estimators are gone; the likely cause, the rank of the labels, is caught.",
)
