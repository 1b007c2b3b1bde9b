"""A centred RMSprop makes NaN of the rows of frequent ids on TensorFlow, compiled by XLA."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(*, centered):
    ids, _ = sentences()
    words = keras.layers.Embedding(20, 8)
    average = keras.layers.GlobalAveragePooling1D()
    ends = [words, average, keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,), dtype="int32"), *ends])
    optimizer = keras.optimizers.RMSprop(0.001, centered=centered)
    model.compile(optimizer, "mse", jit_compile=True)
    return watched_fit(model, ids, ids.mean(axis=1) / 10, epochs=2, batch_size=16)


def faulty():
    return _fit(centered=True)


def healthy():
    return _fit(centered=False)


CASE = Case(
    bugs=("L7",),
    title="The variance of a repeated row's gradient turns negative, and its root NaN",
    rule="nonfinite-propagation",
    subject="training",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
