"""Lines of a profiler cut through the progress bar."""

import sys

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Profiler(keras.callbacks.Callback):
    lines = 4

    def on_epoch_end(self, epoch, logs=None):
        for line in range(self.lines):
            sys.stderr.write(f"profiler: session {line} torn down\n")


class Quiet(Profiler):
    lines = 0


def _fit(callback):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = points()
    return watched_fit(model, *data, epochs=3, batch_size=8, callbacks=[callback], verbose=1)


def faulty():
    return _fit(Profiler())


def healthy():
    return _fit(Quiet())


CASE = Case(
    bugs=("7",),
    title="Chatter on stderr cuts through the progress bar",
    rule="console-anomaly",
    subject="lines through the progress bar",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Lines that C++ code writes to the descriptor itself.",
)
