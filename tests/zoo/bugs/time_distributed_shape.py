"""TimeDistributed around a Lambda with a false `output_shape`."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case


def _fit(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 5)).astype("float32")
    inner = keras.layers.Lambda(lambda t: t[:, ::2], output_shape=shape)
    model = keras.Sequential(
        [
            keras.Input((6, 5)),
            keras.layers.TimeDistributed(inner, name="halved"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Lambda(lambda t: keras.ops.mean(t, -1, keepdims=True), output_shape=(1,)),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    return watched_fit(model, x, x.mean(axis=(1, 2))[:, None], epochs=2, batch_size=8)


def faulty():
    return _fit((5,))


def healthy():
    return _fit((3,))


CASE = Case(
    bugs=("71",),
    title="TimeDistributed passes a false shape on",
    rule="shape-declared-vs-actual",
    subject="*halved*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    live=True,
)
