"""An upsampling layer with one-sided interpolation: not symmetric, as it should be."""

import keras
import numpy as np
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case

from trainsanity import Expect


class OneSided(keras.layers.Layer):
    def call(self, x):
        after = ops.concatenate([x[:, 1:], x[:, -1:]], axis=1)
        shape = (ops.shape(x)[0], 2 * x.shape[1], *x.shape[2:])
        return ops.reshape(ops.stack([x, (x + after) / 2], axis=2), shape)


def _fit(layer):
    x = np.random.default_rng(0).normal(size=(32, 6, 6, 1)).astype("float32")
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((6, 6, 1)), layer, pool, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    options = {"expect": Expect(symmetric=("up",))}
    return watched_fit(model, x, x.mean(axis=(1, 2)), epochs=2, batch_size=8, options=options)


def faulty():
    return _fit(OneSided(name="up"))


def healthy():
    return _fit(keras.layers.UpSampling2D((2, 1), interpolation="bilinear", name="up"))


CASE = Case(
    bugs=("82",),
    title="Upsampling smears two edges",
    rule="path-disagreement",
    faulty=faulty,
    healthy=healthy,
    subject="up, axis 1: *",
    not_reachable="The user has to say with Expect(symmetric=...) which layers are.",
)
