"""A data pipeline that becomes slow: the device waits."""

import itertools
import statistics
import time

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Steps(keras.callbacks.Callback):
    """Times the steps while the data is fast."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    @property
    def usual_seconds(self):
        return statistics.median(b - a for a, b in itertools.pairwise(self.ends[:100]))


def _fit(slowness):
    """`slowness` is that of the data, in times of a step: how long one takes is the machine's."""
    x, y = points(rows=16)
    steps = Steps()

    def batches():
        for batch in range(450):
            if slowness and batch >= 200:
                time.sleep(max(0.012, slowness * steps.usual_seconds))
            yield x, y

    like = (tf.TensorSpec((16, 4)), tf.TensorSpec((16, 1)))
    data = tf.data.Dataset.from_generator(batches, output_signature=like)
    data = data.apply(tf.data.experimental.assert_cardinality(450))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, data, callbacks=[steps])


def faulty():
    return _fit(4)


def healthy():
    return _fit(0)


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
