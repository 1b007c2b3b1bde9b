"""With data of unknown length the optimizer counts one step an epoch that never ran."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(declared):
    x, y = points(rows=48)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    if not declared:
        data = data.filter(lambda x, y: tf.reduce_all(tf.math.is_finite(x)))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, data, epochs=3)


def faulty():
    return _fit(declared=False)


def healthy():
    return _fit(declared=True)


CASE = Case(
    bugs=("L3",),
    title="optimizer.iterations runs ahead by one in every epoch",
    rule="step-count-mismatch",
    subject="optimizer.iterations",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Every run on such data has it on TensorFlow, so it is advice.",
    live=True,
)
