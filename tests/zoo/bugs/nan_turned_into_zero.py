"""An activation written with `where` turns NaN into zero: nothing looks wrong."""

import keras
import numpy as np
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def hiding_relu(x):
    return ops.where(x > 0, x, ops.zeros_like(x))


def _fit(x, y):
    hidden = keras.layers.Dense(4)
    relu = keras.layers.Activation(hiding_relu, name="relu")
    model = keras.Sequential([keras.Input((4,)), relu, hidden, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, x, y, epochs=2, batch_size=8)


def faulty():
    x, y = points()
    x[::5, 0] = np.nan
    return _fit(x, y)


def healthy():
    return _fit(*points())


CASE = Case(
    bugs=("14",),
    title="NaN enters a layer and leaves it as zero",
    rule="nonfinite-propagation",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="The GPU kernel itself.",
)
