"""What a random model learns: its last layer, labels that can be learnt, and a loss that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers, losses, metrics
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Target:
    """One output of a model.

    Attributes:
        words: what it is, for the reader of an alert.
        layers: what ends the model, called one after the other.
        labels: as `fit` gets them; first axis: rows.
        loss: as `compile` gets it.
        metrics: a function that makes new ones, as a metric belongs to one output.
    """

    words: str
    layers: list[keras.layers.Layer]
    labels: Array
    loss: Any
    metrics: Callable[[], list[Any]] = field(default=list)

    def __call__(self, features: Any) -> Any:
        for layer in self.layers:
            features = layer(features)
        return features


Maker = Callable[[np.random.Generator, Array, Any], Target]


def any_target(rng: np.random.Generator, score: Array, dtype: str | None) -> Target:
    """Labels that follow `score`, of shape (rows,) or (rows, time).

    Args:
        dtype: of the last layer; None for that of the policy.
    """
    of_time = score.ndim > 1
    makers = SEQUENCE if of_time else (*SEQUENCE, *ROWS)
    return makers[rng.integers(len(makers))](rng, score, dtype)


def classes_of(score: Array, count: int) -> Array:
    """The `count` classes that cut the scores into equal shares."""
    return np.digitize(score, np.quantile(score, np.arange(1, count) / count))


def _sparse(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    count = int(rng.integers(2, 7))
    labels = classes_of(score, count).astype(rng.choice(["int32", "int64", "uint8", "float32"]))
    if rng.random() < 0.3 and score.ndim == 1:
        labels = labels[:, None]
    if rng.random() < 0.5:
        end: list[Any] = [layers.Dense(count, activation="softmax", dtype=dtype)]
        return Target("sparse classes", end, labels, "sparse_categorical_crossentropy", _accuracy)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    return Target("sparse logits", [layers.Dense(count, dtype=dtype)], labels, loss, _accuracy)


def _one_hot(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    count = int(rng.integers(2, 6))
    labels = np.eye(count, dtype="float32")[classes_of(score, count)]
    end = [layers.Dense(count, dtype=dtype), layers.Activation("softmax", dtype=dtype)]
    kind = rng.integers(4)
    if kind == 0:
        smooth = losses.CategoricalCrossentropy(label_smoothing=0.1)
        return Target("smoothed one-hot", end, labels, smooth, _accuracy)
    if kind == 1:
        focal = losses.CategoricalFocalCrossentropy()
        return Target("focal one-hot", end, labels, focal, _accuracy)
    if kind == 2:
        soft = 0.9 * labels + 0.1 / count
        return Target("soft labels", end, soft, "kl_divergence", lambda: ["kl_divergence"])
    return Target("one-hot", end, labels, "categorical_crossentropy", _accuracy)


def _numbers(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    scale, offset = rng.choice([0.1, 1.0, 10.0]), rng.choice([0.0, 0.0, 5.0])
    labels = (offset + scale * score).astype("float32")[..., None]
    loss = rng.choice(["mse", "mae", "huber", "log_cosh", "mean_squared_error"])
    end: list[Any] = [layers.Dense(1, dtype=dtype)]
    return Target(f"numbers ({loss}, scale {scale})", end, labels, str(loss), _errors)


def _own_loss(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    labels = score.astype("float32")[..., None]
    end: list[Any] = [layers.Dense(1, dtype=dtype)]
    return Target("quantile loss of one's own", end, labels, quantile_loss, _errors)


def quantile_loss(y_true: Any, y_pred: Any) -> Any:
    """Pinball loss of the 0.7 quantile."""
    error = keras.ops.cast(y_true, y_pred.dtype) - y_pred
    return keras.ops.mean(keras.ops.maximum(0.7 * error, -0.3 * error), axis=-1)


def _yes_or_no(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    labels = (score > np.quantile(score, rng.choice([0.3, 0.5, 0.85]))).astype("float32")
    if rng.random() < 0.5:
        labels = labels[:, None]
    kind = rng.integers(4)
    if kind == 0:
        logits: list[Any] = [layers.Dense(1, dtype=dtype)]
        loss = losses.BinaryCrossentropy(from_logits=True)
        return Target("binary logits", logits, labels, loss, _from_logits)
    end: list[Any] = [layers.Dense(1, activation="sigmoid", dtype=dtype)]
    if kind == 1:
        return Target("focal", end, labels, losses.BinaryFocalCrossentropy(), _accuracy)
    if kind == 2:
        return Target("yes or no, many metrics", end, labels, "binary_crossentropy", _retrieval)
    return Target("yes or no", end, labels, "binary_crossentropy", _accuracy)


def _hinge(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    labels = np.sign(score - np.median(score)).astype("float32")[:, None]
    end: list[Any] = [layers.Dense(1, activation="tanh", dtype=dtype)]
    return Target("hinge", end, labels, str(rng.choice(["hinge", "squared_hinge"])))


def _counts(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    labels = np.round(np.exp(score / max(1.0, score.std()))).astype("float32")[:, None]
    end: list[Any] = [layers.Dense(1, activation="softplus", dtype=dtype)]
    loss = str(rng.choice(["poisson", "mean_squared_logarithmic_error"]))
    return Target(f"counts ({loss})", end, labels, loss, _errors)


def _several_labels(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    bounds = np.quantile(score, [0.25, 0.5, 0.75])
    labels = (score[:, None] > bounds).astype("float32")
    end: list[Any] = [layers.Dense(3, activation="sigmoid", dtype=dtype)]
    return Target("several labels", end, labels, "binary_crossentropy", _multi_label)


def _several_numbers(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    labels = np.stack([score, -score, np.cos(score)], axis=-1).astype("float32")
    end: list[Any] = [layers.Dense(3, dtype=dtype)]
    return Target("several numbers", end, labels, str(rng.choice(["mse", "mae"])), _r2)


def _direction(rng: np.random.Generator, score: Array, dtype: Any) -> Target:
    labels = np.stack([np.cos(score), np.sin(score)], axis=-1).astype("float32")
    end: list[Any] = [layers.Dense(2, dtype=dtype)]
    return Target("direction", end, labels, "cosine_similarity", _cosine)


def _accuracy() -> list[Any]:
    return ["accuracy"]


def _errors() -> list[Any]:
    return ["mae", metrics.RootMeanSquaredError(name="rmse")]


def _r2() -> list[Any]:
    return [metrics.R2Score(), metrics.RootMeanSquaredError()]


def _cosine() -> list[Any]:
    return ["cosine_similarity"]


def _from_logits() -> list[Any]:
    return [metrics.BinaryAccuracy(threshold=0.0), metrics.AUC(from_logits=True)]


def _retrieval() -> list[Any]:
    return ["accuracy", metrics.AUC(), metrics.Precision(), metrics.Recall()]


def _multi_label() -> list[Any]:
    return [metrics.AUC(multi_label=True), metrics.F1Score(threshold=0.5), "binary_accuracy"]


SEQUENCE: tuple[Maker, ...] = (_sparse, _one_hot, _numbers, _own_loss)
ROWS: tuple[Maker, ...] = (
    _yes_or_no,
    _yes_or_no,
    _hinge,
    _counts,
    _several_labels,
    _several_numbers,
    _direction,
)
