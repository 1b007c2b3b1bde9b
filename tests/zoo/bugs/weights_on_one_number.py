"""Class weights under a Dice loss, which is one number for the whole batch."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import classes


def _fit(axis):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", keras.losses.Dice(axis=axis))
    x, y = classes()
    labels = keras.utils.to_categorical(y, 3)
    weights = {0: 0.1, 1: 5.0, 2: 1.0}
    return watched_fit(model, x, labels, epochs=2, batch_size=8, class_weight=weights)


def faulty():
    return _fit(None)


def healthy():
    return _fit(1)


CASE = Case(
    bugs=("L12",),
    title="The rare class counts no more than the others",
    rule="sample-weight-effect",
    subject="loss",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
