"""An activation whose own gradient is zero: nothing before it learns."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


@tf.custom_gradient
def dead_relu(x):
    return tf.nn.relu(x), tf.zeros_like


@tf.custom_gradient
def live_relu(x):
    return tf.nn.relu(x), lambda upstream: upstream * tf.cast(x > 0, x.dtype)


def _fit(relu):
    hidden = keras.layers.Dense(8, activation=relu, name="hidden")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=3, batch_size=4)


def faulty():
    return _fit(dead_relu)


def healthy():
    return _fit(live_relu)


CASE = Case(
    bugs=("69",),
    title="A layer passes no gradient on",
    rule="dead-weights",
    subject="*hidden*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
)
