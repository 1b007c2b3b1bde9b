"""The models whose steps are timed: small, so that what a callback adds is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

TOKENS = 32  # positions of a sequence
VOCABULARY = 500

Made = tuple[keras.Model, Any, Any]


def dense(rows: int) -> Made:
    """A classifier with a step below a millisecond."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 16)).astype("float32")
    y = random.integers(0, 4, rows)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(4, activation="softmax"),
        ]
    )
    return _compiled(model), x, y


def cnn(rows: int) -> Made:
    """A small convolutional classifier with batch normalization and dropout."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 28, 28, 1)).astype("float32")
    y = random.integers(0, 10, rows)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return _compiled(model), x, y


def deep_cnn(rows: int) -> Made:
    """A convolutional classifier with a step of some ten milliseconds on two cores."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 24, 24, 3)).astype("float32")
    y = random.integers(0, 10, rows)
    model = keras.Sequential([keras.Input((24, 24, 3))])
    for filters in (24, 24, 32):
        model.add(layers.Conv2D(filters, 3, padding="same"))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.MaxPooling2D())
    model.add(layers.Conv2D(48, 3, activation="relu"))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, activation="softmax"))
    return _compiled(model), x, y


def wide(rows: int) -> Made:
    """A classifier of 2.6 million weights, most of whose step reads and writes memory."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 256)).astype("float32")
    y = random.integers(0, 10, rows)
    model = keras.Sequential([keras.Input((256,))])
    for units in (2048, 1024):
        model.add(layers.Dense(units, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    return _compiled(model), x, y


def embedding(rows: int) -> Made:
    """A classifier of texts, almost all of whose weights are those of a large table."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 30_000, (rows, 40)).astype("int32")
    model = keras.Sequential([keras.Input((40,), dtype="int32")])
    model.add(layers.Embedding(30_000, 64, mask_zero=True))
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(2, activation="softmax"))
    return _compiled(model), ids, ids[:, 0] % 2


def lstm(rows: int) -> Made:
    """A tagger of padded sequences, with a mask."""
    ids, tags = _sequences(rows)
    tokens = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 32, mask_zero=True)(tokens)
    x = layers.LSTM(32, return_sequences=True)(x)
    return _compiled(keras.Model(tokens, layers.Dense(8, activation="softmax")(x))), ids, tags


def transformer(rows: int) -> Made:
    """A block of self-attention over padded sequences, with masks and residuals."""
    ids, tags = _sequences(rows)
    tokens = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 64, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(4, 16, dropout=0.1)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    deep = layers.Dense(64)(layers.Dense(128, activation="gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, deep]))
    return _compiled(keras.Model(tokens, layers.Dense(8, activation="softmax")(x))), ids, tags


def _sequences(rows: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    ids = random.integers(1, VOCABULARY, (rows, TOKENS)).astype("int32")
    lengths = random.integers(5, TOKENS + 1, rows)
    ids[np.arange(TOKENS) >= lengths[:, None]] = 0
    return ids, ids % 8


def _compiled(model: keras.Model) -> keras.Model:
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MODELS: dict[str, Callable[[int], Made]] = {
    "dense": dense,
    "cnn": cnn,
    "deep-cnn": deep_cnn,
    "wide": wide,
    "embedding": embedding,
    "lstm": lstm,
    "transformer": transformer,
}
