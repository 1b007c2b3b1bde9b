"""A softmax under a binary crossentropy: Keras on TensorFlow trains a sigmoid instead."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(activation):
    x, y = points()
    hidden = keras.layers.Dense(8, activation="relu")
    head = keras.layers.Dense(3, activation=activation)
    model = keras.Sequential([keras.Input((4,)), hidden, head])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    labels = (y > [-0.5, 0.0, 0.5]).astype("float32")
    return watched_fit(model, x, labels, epochs=2, batch_size=8)


def faulty():
    return _fit("softmax")


def healthy():
    return _fit("sigmoid")


CASE = Case(
    bugs=("L11",),
    title="The loss falls, and it is not the loss of the outputs",
    rule="output-range-mismatch",
    subject="loss",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
