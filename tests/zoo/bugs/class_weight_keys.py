"""`class_weight` with keys written as text is ignored."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import classes


def _fit(weights):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return watched_fit(model, *classes(), epochs=2, batch_size=8, class_weight=weights)


def faulty():
    return _fit({"0": 0.1, "1": 0.5, "2": 0.1})


def healthy():
    return _fit({0: 0.1, 1: 0.5, 2: 0.1})


CASE = Case(
    bugs=("36",),
    title="Class weights do not reach the loss",
    rule="sample-weight-effect",
    subject="class_weight",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
