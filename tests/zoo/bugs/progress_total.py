"""The progress bar counts to the number of rows, not of batches."""

import tempfile

import keras
from tests.watched import offline_callback, run_of
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(total):
    x, y = points()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with tempfile.TemporaryDirectory() as folder:
        callback = offline_callback(folder)
        steps = {"rows": len(x), "batches": len(x) // 8}[total]
        callbacks = keras.callbacks.CallbackList(
            [callback], add_history=True, model=model, verbose=0, epochs=2, steps=steps
        )
        model.fit(x, y, epochs=2, batch_size=8, callbacks=callbacks, verbose=0)
        return run_of(callback)


def faulty():
    return _fit("rows")


def healthy():
    return _fit("batches")


CASE = Case(
    bugs=("75",),
    title="The progress bar's total is the number of rows",
    rule="step-count-mismatch",
    subject="progress of epoch",
    faulty=faulty,
    healthy=healthy,
)
