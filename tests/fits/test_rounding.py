"""Under XLA a look at a value must not change how what it is made of is compiled, and rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import offline_callback

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="nothing compiles the step with our look at it"
)

random = np.random.default_rng(107)
LABELS = random.integers(0, 3, 70)
IMAGES = random.normal(size=(70, 8, 8, 2)).astype("float32")
IDS = random.integers(1, 20, (70, 7))
for row, end in zip(IDS, random.integers(2, 8, 70), strict=True):
    row[end:] = 0


def convolutions(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(6, 3, activation="gelu")])
    for layer in (layers.BatchNormalization(), layers.MaxPooling2D(), layers.Flatten()):
        model.add(layer)
    model.add(layers.Dense(3, "softmax"))
    return compiled(model, optimizer)


def attention(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    ids = keras.Input((7,), dtype="int32")
    tokens = layers.Embedding(20, 8, mask_zero=True)(ids)
    mixed = layers.MultiHeadAttention(2, 4, dropout=0.1)(tokens, tokens)
    mean = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(tokens + mixed))
    return compiled(keras.Model(ids, layers.Dense(3, "softmax")(mean)), optimizer)


def many_weights(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = keras.Sequential([keras.Input((7,)), layers.Embedding(2100, 8), layers.Flatten()])
    model.add(layers.Dense(320, "gelu", kernel_regularizer="l2"))
    model.add(layers.Dense(3, "softmax"))
    return compiled(model, optimizer)


def few_weights(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    layer = layers.Dense(8, "relu")
    return compiled(
        keras.Sequential([keras.Input((7,)), layer, layers.Dense(3, "softmax")]), optimizer
    )


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=True)
    return model


MODELS: dict[str, tuple[Callable[[], keras.Model], Any]] = {
    "gradients that are clipped": (
        lambda: convolutions(keras.optimizers.Nadam(1e-2, global_clipnorm=0.5)),
        IMAGES,
    ),
    "gradients of attention": (lambda: attention(keras.optimizers.Lion(1e-3)), IDS),
    "a rate that restarts": (
        lambda: few_weights(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecayRestarts(0.1, 7))
        ),
        IDS,
    ),
    "gradients of many weights": (
        lambda: many_weights(keras.optimizers.Adam(1e-2, clipnorm=0.1)),
        IDS,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_history_are_the_same_to_the_last_bit(name: str, tmp_path) -> None:
    make, x = MODELS[name]
    found = []
    for callbacks in ([], [offline_callback(tmp_path, audit_budget=0)]):
        keras.backend.clear_session()
        keras.utils.set_random_seed(107)
        model = make()
        weights = np.linspace(0.5, 2.0, len(x), dtype="float32")
        history = model.fit(
            x, LABELS, sample_weight=weights, batch_size=8, epochs=2, verbose=0, callbacks=callbacks
        )
        state = [*model.variables, *model.optimizer.variables]
        paths = [variable.path for variable in state]
        values = [keras.ops.convert_to_numpy(variable).tobytes() for variable in state]
        found.append((history.history, paths, values))
    plain, watched = found
    for part, other in zip(plain, watched, strict=True):
        assert part == other
