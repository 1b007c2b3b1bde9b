"""The loss is finite, its gradient is not."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(smallest):
    x, y = points()
    x[:] = abs(x)
    x[0] = 0.0
    root = keras.layers.Lambda(lambda v: tf.sqrt(v * v + smallest), output_shape=(4,))
    layers = [keras.Input((4,)), keras.layers.Dense(4, use_bias=False), root]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, x, y, epochs=2, batch_size=8, shuffle=False)


def faulty():
    return _fit(0.0)


def healthy():
    return _fit(1e-6)


CASE = Case(
    bugs=("31",),
    title="A finite loss with a gradient that is NaN",
    rule="nonfinite-propagation",
    subject="training",
    faulty=faulty,
    healthy=healthy,
    not_reachable="The second derivative itself, where training does not use it.",
)
