"""Data from a generator: Keras shows no total, as nothing declares it."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(declared):
    x, y = points(rows=8)
    like = (tf.TensorSpec((8, 4)), tf.TensorSpec((8, 1)))
    data = tf.data.Dataset.from_generator(lambda: [(x, y)] * 12, output_signature=like)
    if declared:
        data = data.apply(tf.data.experimental.assert_cardinality(12))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, data, epochs=3)


def faulty():
    return _fit(False)


def healthy():
    return _fit(True)


CASE = Case(
    bugs=("55", "63"),
    title="The number of steps is not known",
    rule="step-count-mismatch",
    subject="length of the data",
    in_words=True,
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="An unknown total contradicts none, so this is advice.",
    live=True,
)
