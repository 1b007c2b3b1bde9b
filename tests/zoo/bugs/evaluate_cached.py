"""A callback evaluates other rows, and gets the result of the validation data."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Testing(keras.callbacks.Callback):
    """Evaluates rows of its own at the end of each epoch."""

    def __init__(self, rows, **options):
        super().__init__()
        self.rows = rows
        self.options = options

    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(*self.rows, verbose=0, **self.options)


def _fit(**options):
    x, y = points(rows=96)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    testing = Testing((x[80:], 3 * y[80:]), **options)
    data = {"validation_data": (x[64:80], y[64:80]), "callbacks": [testing]}
    return watched_fit(model, x[:64], y[:64], epochs=2, batch_size=8, **data)


def faulty():
    return _fit(_use_cached_eval_dataset=True)


def healthy():
    return _fit()


CASE = Case(
    bugs=("30",),
    title="evaluate() in a callback returns the result of the validation data",
    rule="path-disagreement",
    subject="loss: evaluate / predictions for the same rows",
    faulty=faulty,
    healthy=healthy,
)
