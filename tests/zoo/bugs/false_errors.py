"""Lines that look like errors, while nothing is wrong."""

import sys

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Alarming(keras.callbacks.Callback):
    level = "E"

    def on_epoch_begin(self, epoch, logs=None):
        place = "tensorflow/core/grappler/optimizers/dependency_optimizer.cc:697"
        sys.stderr.write(f"2020-03-30 12:00:00.1: {self.level} {place}] the graph has a cycle\n")


class Calm(Alarming):
    level = "I"


def _fit(callback):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8, callbacks=[callback])


def faulty():
    return _fit(Alarming())


def healthy():
    return _fit(Calm())


CASE = Case(
    bugs=("19",),
    title="Error lines are printed, and training goes on as if nothing were",
    rule="console-anomaly",
    subject="error lines",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="That the errors are false, and lines that C++ code writes by itself.",
)
