"""A validation pass that prints the header of an epoch."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Header(keras.callbacks.Callback):
    text = "Epoch 1/1"

    def on_test_begin(self, logs=None):
        print(self.text)


class Validating(Header):
    text = "Validating"


def _fit(callback):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    options = {"validation_split": 0.25, "callbacks": [callback], "verbose": 2}
    return watched_fit(model, *points(), epochs=2, batch_size=8, **options)


def faulty():
    return _fit(Header())


def healthy():
    return _fit(Validating())


CASE = Case(
    bugs=("65",),
    title="The header of an epoch is printed twice",
    rule="console-anomaly",
    subject="epoch headers",
    in_words=True,
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Runs that print no headers.",
)
