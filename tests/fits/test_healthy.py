"""Ordinary fits: nothing at `warning` or above may be said about any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import watched_fit

from trainsanity.keras_versions import minor_version
from trainsanity.spooled import SpooledRun

ON_JAX = keras.backend.backend() == "jax"
# Keras counts padding in training metrics there, as it did everywhere up to 3.11 at most.
COUNTS_PADDING = ON_JAX or minor_version(keras.__version__) < (3, 12)


def classes(rows: int = 256, width: int = 8) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(rows, width)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int64") + (x[:, 2] > 0.5)


def sentences(
    rows: int = 192, length: int = 10, words: int = 40
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids padded with 0, and a class from 1 to 4 for each token."""
    generator = np.random.default_rng(4)
    x = generator.integers(1, words, size=(rows, length))
    for row, end in zip(x, generator.integers(3, length + 1, size=rows), strict=True):
        row[end:] = 0
    return x, np.where(x > 0, x % 4 + 1, 0)


def classifier() -> SpooledRun:
    x, y = classes()
    model = keras.Sequential(
        [layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dropout(0.2)]
    )
    model.add(layers.Dense(3, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3, validation_split=0.2)


def regression() -> SpooledRun:
    x, _ = classes()
    target = x @ np.linspace(-1, 1, 8).astype("float32")[:, None]
    model = keras.Sequential([layers.Input((8,)), layers.Dense(1, kernel_regularizer="l2")])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    return watched_fit(model, x, target, epochs=3, batch_size=48)


def masked_sequence_with_add() -> SpooledRun:
    x, y = sentences()
    inputs = keras.Input((10,), dtype="int32")
    embedded = layers.Embedding(40, 12, mask_zero=True)(inputs)
    inner = layers.Dense(12, activation="relu")(embedded)
    outputs = layers.Dense(5, activation="softmax")(layers.Add()([embedded, inner]))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3)


def rnn_that_ends_the_mask() -> SpooledRun:
    x, _ = sentences()
    y = (x[:, 0] > 20).astype("float32")
    model = keras.Sequential([layers.Input((10,), dtype="int32")])
    model.add(layers.Embedding(40, 8, mask_zero=True))
    model.add(layers.LSTM(8))
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile("rmsprop", "binary_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3)


def pooling_that_ends_the_mask() -> SpooledRun:
    x, _ = sentences()
    y = (x[:, 0] > 20).astype("float32")
    model = keras.Sequential([layers.Input((10,), dtype="int32")])
    model.add(layers.Embedding(40, 8, mask_zero=True))
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3)


def bidirectional_tagger() -> SpooledRun:
    x, y = sentences()
    inputs = keras.Input((10,), dtype="int32")
    embedded = layers.Embedding(40, 12, mask_zero=True)(inputs)
    both = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(embedded)
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(both))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3)


def several_inputs_and_outputs() -> SpooledRun:
    x, y = classes()
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    joined = layers.Concatenate()([layers.Dense(8)(left), layers.Dense(8)(right)])
    kind = layers.Dense(3, activation="softmax", name="kind")(joined)
    size = layers.Dense(1, name="size")(joined)
    model = keras.Model({"left": left, "right": right}, {"kind": kind, "size": size})
    model.compile(
        "adam",
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.3},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    labels = {"kind": y, "size": x[:, :1]}
    return watched_fit(model, {"left": x, "right": x[:, ::-1]}, labels, epochs=3)


def weighted_metrics() -> SpooledRun:
    x, y = classes()
    model = keras.Sequential([layers.Input((8,)), layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return watched_fit(model, x, y, sample_weight=1.0 + (y == 2), epochs=3)


def frozen_backbone() -> SpooledRun:
    x, y = classes()
    backbone = keras.Sequential(
        [layers.Input((8,)), layers.Dense(16, activation="relu"), layers.BatchNormalization()]
    )
    backbone.trainable = False
    model = keras.Sequential([layers.Input((8,)), backbone, layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3)


def schedule_with_warm_up() -> SpooledRun:
    x, y = classes()
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=40, warmup_target=0.01, warmup_steps=8
    )
    model = keras.Sequential([layers.Input((8,)), layers.Dense(3, activation="softmax")])
    model.compile(
        keras.optimizers.AdamW(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return watched_fit(model, x, y, epochs=5)


def plateau_and_early_stopping() -> SpooledRun:
    x, y = classes()
    model = keras.Sequential([layers.Input((8,)), layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=10.0),
        keras.callbacks.EarlyStopping(monitor="loss", patience=3, restore_best_weights=True),
    ]
    return watched_fit(model, x, y, epochs=5, callbacks=callbacks)


def small_convolutions() -> SpooledRun:
    generator = np.random.default_rng(5)
    x = generator.random((128, 12, 12, 1)).astype("float32")
    y = keras.utils.to_categorical((x.mean(axis=(1, 2, 3)) > 0.5).astype(int), 2)
    model = keras.Sequential([layers.Input((12, 12, 1)), layers.Conv2D(4, 3, activation="relu")])
    model.add(layers.BatchNormalization())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(2, activation="softmax"))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, epochs=3)


HEALTHY = [
    classifier,
    regression,
    masked_sequence_with_add,
    rnn_that_ends_the_mask,
    pooling_that_ends_the_mask,
    bidirectional_tagger,
    several_inputs_and_outputs,
    weighted_metrics,
    frozen_backbone,
    schedule_with_warm_up,
    plateau_and_early_stopping,
    small_convolutions,
]


@pytest.mark.parametrize("train", HEALTHY, ids=lambda train: train.__name__)
def test_raises_no_warning_on(train: Callable[[], SpooledRun]) -> None:
    if COUNTS_PADDING and train in (masked_sequence_with_add, bidirectional_tagger):
        pytest.skip("Keras counts padding in these metrics: no healthy control")
    keras.utils.set_random_seed(11)
    run = train()
    judgement = run.judge()
    said = [(rule.id, f.subject, f.message) for rule, f in judgement.at_least("warning")]
    assert said == []
    failed = [a.facts["probe"] + ": " + a.facts["error"] for a in run.audits("probe_failed")]
    assert failed == []
    ok = [slug for slug, (verdict, _) in judgement.verdicts.items() if verdict == "ok"]
    assert {"metric-recompute-mismatch", "lr-effective-mismatch", "step-count-mismatch"} <= {*ok}
