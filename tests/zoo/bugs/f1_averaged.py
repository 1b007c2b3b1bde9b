"""An F1 written as a function: Keras averages it over batches."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def f1(y_true, y_pred):
    guessed = ops.cast(y_pred > 0.5, "float32")
    both = ops.sum(y_true * guessed)
    return 2 * both / (ops.sum(y_true) + ops.sum(guessed) + 1e-7)


def agreement(y_true, y_pred):
    """One number too, and the mean of its batches is that of the data."""
    return ops.mean(ops.cast(ops.equal(y_true, ops.cast(y_pred > 0.5, "float32")), "float32"))


def _fit(metric):
    x, y = points()
    rare = (y > 2.0).astype("float32")  # in some batches there is none
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=[metric])
    return watched_fit(model, x, rare, epochs=6, batch_size=8)


def faulty():
    return _fit(f1)


def healthy():
    return _fit(agreement)


CASE = Case(
    bugs=("L13",),
    title="The F1 shown is the mean of those of the batches",
    rule="batch-dependent-metric",
    subject="f1",
    advice=True,
    faulty=faulty,
    healthy=healthy,
)
