"""A data pipeline that becomes slow: the device waits."""

import time

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(seconds):
    x, y = points(rows=16)

    def batches():
        for batch in range(450):
            time.sleep(seconds if batch >= 200 else 0.0)
            yield x, y

    like = (tf.TensorSpec((16, 4)), tf.TensorSpec((16, 1)))
    data = tf.data.Dataset.from_generator(batches, output_signature=like)
    data = data.apply(tf.data.experimental.assert_cardinality(450))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, data)


def faulty():
    return _fit(0.012)


def healthy():
    return _fit(0.0)


CASE = Case(
    bugs=("29", "56"),
    title="The data becomes slow, and the device waits",
    rule="step-time-anomaly",
    subject="input pipeline",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Slow is not wrong, so this is advice; no single run shows a faster entry point.",
)
