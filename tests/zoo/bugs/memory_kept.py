"""A callback that keeps arrays in a list."""

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
        array = np.ones((5, 2**17))  # 5 MiB
        if self.keeps:
            self.kept.append(array)


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
    faulty=faulty,
    healthy=healthy,
    advice=True,
)
