"""A layer that draws from a generator without a seed although determinism was declared."""

import keras
import numpy as np
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points

from trainsanity import Expect


class Noise(keras.layers.Layer):
    def __init__(self, seeded, **options):
        super().__init__(**options)
        self.seeded = seeded
        self.generator = np.random.default_rng(0 if seeded else None)

    def call(self, x, training=False):
        if not training:
            return x
        drawn = tf.py_function(lambda: self.generator.normal(size=4), [], tf.float32)
        return x + 0.1 * tf.ensure_shape(drawn, (4,))


def _fit(layer):
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    expect = Expect(deterministic=True)
    return watched_fit(model, *points(), epochs=2, batch_size=8, options={"expect": expect})


def faulty():
    return _fit(Noise(seeded=False))


def healthy():
    return _fit(Noise(seeded=True))


CASE = Case(
    bugs=("68",),
    title="Two runs from one seed differ",
    rule="nondeterminism",
    faulty=faulty,
    healthy=healthy,
    subject="weights",
    in_words=True,
    not_reachable="Kernels of a GPU.",
)
