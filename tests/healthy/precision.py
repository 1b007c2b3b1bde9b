"""Half precision, in which honest ways to compute differ much further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import layers
from tests.healthy.data import opinions, pictures, sentences, table
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


@contextmanager
def policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def mixed_bfloat16_convnet() -> SpooledRun:
    """Compiled, several layers are one kernel that rounds once; eagerly each of them rounds."""
    x, y = pictures(side=8)
    with policy("mixed_bfloat16"):
        inputs = keras.Input((8, 8, 1))
        features = inputs
        for _ in range(3):
            features = layers.Conv2D(8, 3, padding="same")(features)
            features = layers.Activation("gelu")(layers.BatchNormalization(momentum=0.7)(features))
        features = layers.SpatialDropout2D(0.1)(features)
        features = layers.Activation("relu")(features)
        outputs = layers.Dense(3, dtype="float32")(layers.Flatten()(features))
        model = keras.Model(inputs, outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
        return watched_fit(model, x, y, batch_size=16, epochs=2)


def mixed_float16_with_loss_scale() -> SpooledRun:
    """The first steps overflow and are skipped until the scale fits."""
    x, y = table()
    with policy("mixed_float16"):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation="relu")])
        model.add(layers.Dense(1, dtype="float32"))
        adam = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.005), initial_scale=2**24
        )
        model.compile(adam, "mse", metrics=["mae"])
        return watched_fit(model, x, y[:, None], batch_size=8, epochs=2)


def mixed_float16_recurrent() -> SpooledRun:
    x = sentences()
    with policy("mixed_float16"):
        inputs = keras.Input((10,), dtype="int32")
        embedded = layers.Embedding(30, 8, mask_zero=True)(inputs)
        features = layers.Bidirectional(layers.LSTM(6, dropout=0.1))(embedded)
        model = keras.Model(
            inputs, layers.Dense(1, activation="sigmoid", dtype="float32")(features)
        )
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
        return watched_fit(model, x, opinions(x), batch_size=16, epochs=2)


def mixed_float16_categories() -> SpooledRun:
    """Numbers beside a one-hot category, which Keras 3.15 leaves in float32."""
    x, y = table()
    with policy("mixed_float16"):
        numbers, kind = keras.Input((6,)), keras.Input((), dtype="int32")
        one_hot = layers.CategoryEncoding(4, "one_hot")(kind)
        features = layers.Dense(8, activation="relu")(layers.Concatenate()([numbers, one_hot]))
        model = keras.Model([numbers, kind], layers.Dense(1, dtype="float32")(features))
        model.compile("adam", "mse", metrics=["mae"])
        kinds = (x[:, 0] > 0).astype("int32") + (x[:, 1] > 0)
        return watched_fit(model, [x, kinds], y[:, None], batch_size=16, epochs=2)


def bfloat16_with_clipping() -> SpooledRun:
    """Weights and gradients in half precision: the norm they are clipped by is a rough one."""
    x, y = table(rows=128, columns=24)
    with policy("bfloat16"):
        model = keras.Sequential([keras.Input((24,)), layers.Dense(256, activation="relu")])
        model.add(layers.Dense(1))
        model.compile(keras.optimizers.SGD(0.01, global_clipnorm=1.0), "mse", metrics=["mae"])
        return watched_fit(model, x, 5 * y[:, None], batch_size=16, epochs=2)


WORKFLOWS = [
    bfloat16_with_clipping,
    mixed_bfloat16_convnet,
    mixed_float16_with_loss_scale,
    mixed_float16_recurrent,
    mixed_float16_categories,
]
