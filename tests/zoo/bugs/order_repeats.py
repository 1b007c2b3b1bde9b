"""`reshuffle_each_iteration` is off: every epoch sees the batches in the same order."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points

from trainsanity import Expect


def _fit(reshuffle):
    data = tf.data.Dataset.from_tensor_slices(points(rows=96))
    data = data.shuffle(96, seed=1, reshuffle_each_iteration=reshuffle).batch(8)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, data, epochs=3, options={"expect": Expect(shuffle=True)})


def faulty():
    return _fit(False)


def healthy():
    return _fit(True)


CASE = Case(
    bugs=("41",),
    title="Shuffled data comes in the same order in every epoch",
    rule="data-order-repeat",
    subject="data",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
)
