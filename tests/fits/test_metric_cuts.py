"""Metrics of which Keras shows the mean over batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from tests.watched import watched_fit
from tests.zoo.bugs.f1_averaged import f1

from trainsanity.spooled import SpooledRun

RNG = np.random.default_rng(2)
X = RNG.normal(size=(96, 4)).astype("float32")
RARE = (np.arange(96)[:, None] < 8).astype("float32")  # all in the first batch
LENGTHS = RNG.integers(3, 9, (96, 1))


def root_of_mean_square(y_true: Any, y_pred: Any) -> Any:
    return ops.sqrt(ops.mean(ops.square(y_true - y_pred)))


def of_real_positions(y_true: Any, y_pred: Any) -> Any:
    """As many write it for text: rows count by their length, so batches do not count alike."""
    is_real = ops.cast(y_true >= 0, "float32")
    return ops.sum(is_real * ops.cast(y_pred > 0.4, "float32")) / ops.sum(is_real)


def of_each_row(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


def at_random(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(y_pred) * np.random.random()


def without_a_number(y_true: Any, y_pred: Any) -> Any:
    return ops.sum(y_true) * np.nan


def compiled(metric: Any, width: int = 1) -> keras.Model:
    """It says yes to everything."""
    keras.utils.set_random_seed(1)
    head = keras.layers.Dense(width, "sigmoid", kernel_initializer="zeros", bias_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), head])
    model.compile(keras.optimizers.SGD(0.001), "mse", metrics=[metric])
    return model


def fitted(metric: Callable[..., Any], y: Any = RARE) -> SpooledRun:
    model = compiled(metric, y.shape[1])
    return watched_fit(model, X, y, epochs=2, batch_size=16, shuffle=False)


def told(run: SpooledRun) -> list[str]:
    return [f.subject for f in run.judge().of("batch-dependent-metric")]


def test_is_told_of_a_function_that_counts_inside_a_batch() -> None:
    run = fitted(f1)
    assert told(run) == ["f1"]
    facts = run.audits("metric_cuts")[-1].facts
    assert (facts["rows"], facts["batch"]) == (64, 16)
    assert 0 < facts["metrics"][0]["mean"] < facts["metrics"][0]["whole"]


def test_takes_the_captured_rows_where_the_data_is_no_array() -> None:
    parts = [(X[first : first + 32], RARE[first : first + 32]) for first in range(0, 96, 32)]
    run = watched_fit(compiled(f1), (part for part in parts), steps_per_epoch=3, shuffle=False)
    (facts,) = (audit.facts for audit in run.audits("metric_cuts"))
    assert (facts["rows"], facts["batch"]) == (8, 4)


@pytest.mark.parametrize(
    ("metric", "y"),
    [
        (root_of_mean_square, RARE),
        (of_real_positions, np.where(np.arange(8) < LENGTHS, 1.0, -1.0).astype("float32")),
        (of_each_row, RARE),
        (at_random, RARE),
        (without_a_number, RARE),
        ("accuracy", RARE),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
def test_is_silent_where_batches_make_no_difference_that_matters(metric: Any, y: Any) -> None:
    run = fitted(metric, y)
    assert not told(run)
    assert not run.audits("probe_failed")


@pytest.mark.parametrize("metric", [f1, at_random], ids=["f1", "at_random"])
def test_leaves_random_numbers_as_they_are(metric: Any) -> None:
    fitted(metric)
    watched = [float(keras.random.uniform(())), np.random.random()]
    compiled(metric).fit(X, RARE, epochs=2, batch_size=16, shuffle=False, verbose=0)
    assert watched == [float(keras.random.uniform(())), np.random.random()]
