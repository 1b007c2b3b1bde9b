"""A progress bar of one sign for each sample fills the terminal."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Bar(keras.callbacks.Callback):
    signs = 64  # the samples of a batch

    def on_test_batch_end(self, batch, logs=None):
        print("=" * self.signs, end="", flush=True)

    def on_test_end(self, logs=None):
        print()


class ShortBar(Bar):
    signs = 1


def _fit(bar):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    options = {
        "validation_data": [part[64:] for part in points(rows=1088)],
        "validation_batch_size": 64,
    }
    return watched_fit(model, *points(), epochs=2, batch_size=16, callbacks=[bar], **options)


def faulty():
    return _fit(Bar())


def healthy():
    return _fit(ShortBar())


CASE = Case(
    bugs=("2", "60", "67"),
    title="A progress bar prints one sign for each sample",
    rule="console-anomaly",
    subject="progress bar",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Cosmetic, so never more than advice; silent runs print nothing to look at.",
)
