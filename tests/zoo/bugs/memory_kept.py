"""A callback that makes variables and arrays and keeps them in a list."""

import mmap

import keras
import numpy as np
from tests.watched import let_earlier_runs_end, watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Keeping(keras.callbacks.Callback):
    keeps = True

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_epoch_end(self, epoch, logs=None):
        # Straight from the system: allocators lay what they are asked for where earlier fits of
        # this process have left room, and then it does not grow.
        pages = mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(pages, "uint8")
        array += 1
        variable = keras.Variable(array[:4].astype("float32"))
        if self.keeps:
            self.kept.append((variable, array))


class Dropping(Keeping):
    keeps = False


def _fit(callback):
    let_earlier_runs_end()  # what they have left must not be freed during this one
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
