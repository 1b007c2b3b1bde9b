"""An activation written with `where` turns NaN into zero: nothing looks wrong."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def hiding_relu(x):
    return ops.where(x > 0, x, ops.zeros_like(x))


class Share(keras.layers.Layer):
    """Each feature as a share of all; rows of zeros have none."""

    least = 0.0

    def call(self, x):
        return x / (ops.sum(ops.abs(x), axis=-1, keepdims=True) + self.least)


class GuardedShare(Share):
    least = 1e-6


def _fit(share):
    x, y = points()
    x[::5] = 0.0
    relu = keras.layers.Activation(hiding_relu, name="relu")
    layers = [share, relu, keras.layers.Dense(4), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse")
    return watched_fit(model, x, y, epochs=2, batch_size=8)


def faulty():
    return _fit(Share())


def healthy():
    return _fit(GuardedShare())


CASE = Case(
    bugs=("14",),
    title="NaN enters a layer and leaves it as zero",
    rule="nonfinite-propagation",
    subject="relu",
    faulty=faulty,
    healthy=healthy,
    not_reachable="The GPU kernel itself.",
)
