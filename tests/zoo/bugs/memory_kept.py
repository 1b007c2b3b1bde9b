"""A callback that makes variables and keeps them in a list."""

import gc

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Keeping(keras.callbacks.Callback):
    keeps = True

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_end(self, batch, logs=None):
        variable = keras.Variable(np.ones((10, 2**17), "float32"))  # 5 MiB
        if self.keeps:
            self.kept.append(variable)


class Dropping(Keeping):
    keeps = False


def _fit(callback):
    gc.collect()  # what earlier fits have left must not be freed during this one
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=14, batch_size=16, callbacks=[callback])


def faulty():
    return _fit(Keeping())


def healthy():
    return _fit(Dropping())


CASE = Case(
    bugs=("59",),
    title="Memory grows with every epoch",
    rule="memory-growth",
    subject="memory of the process",
    faulty=faulty,
    healthy=healthy,
    not_reachable="Arrays that are kept without variables are told of as advice.",
)
