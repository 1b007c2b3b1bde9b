"""Training calculated by hand, in numpy and double precision, from the data alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Batch = tuple[Array, Array, Array | None]  # inputs, labels, sample weights


def rows(count: int = 10, width: int = 3, seed: int = 5) -> Array:
    return np.random.default_rng(seed).normal(size=(count, width)).astype("float32")


def cut(size: int, *arrays: Array) -> list[tuple[Array, ...]]:
    """Batches of `size` rows; the last one may be short."""
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]


def to_date(epochs: Iterable[Sequence[tuple[float, float]]]) -> Array:
    """Means since the epoch began.

    Args:
        epochs: of each epoch, numerator and denominator of every batch.
    """
    means = [
        np.cumsum([n for n, _ in batches]) / np.cumsum([d for _, d in batches])
        for batches in epochs
    ]
    return np.concatenate(means)


@dataclass
class Line:
    """Linear regression with squared errors, trained with gradient descent.

    Attributes:
        kernel, bias: shapes (inputs, outputs) and (outputs,).
        rate: the learning rate.
    """

    kernel: Array
    bias: Array
    rate: float

    @classmethod
    def of(cls, width: int = 3, outputs: int = 1, rate: float = 0.05) -> Line:
        kernel = np.linspace(-0.5, 0.7, width * outputs).reshape(width, outputs)
        return cls(kernel, np.linspace(0.1, 0.2, outputs), rate)

    def weights(self) -> list[Array]:
        return [self.kernel.astype("float32"), self.bias.astype("float32")]

    def __call__(self, x: Array) -> Array:
        return x.astype(np.float64) @ self.kernel + self.bias

    def learn(self, x: Array, y: Array, weight: Array | None = None) -> Array:
        """One step; returns the errors before it, (rows, outputs)."""
        errors: Array = self(x) - y
        slope = 2 * errors / errors.size
        if weight is not None:
            slope = slope * np.reshape(weight, (-1, 1))
        self.kernel = self.kernel - self.rate * x.astype(np.float64).T @ slope
        self.bias = self.bias - self.rate * slope.sum(axis=0)
        return errors


def trained(line: Line, epochs: Sequence[Sequence[Batch]]) -> dict[str, Array]:
    """Evidence of a regression with metrics `mae` (not weighted) and `mse` (weighted), batch by
    batch; `line` is trained.
    """
    runs = [[(line.learn(x, y, w), w) for x, y, w in batches] for batches in epochs]
    return {**measured(runs), "optimizer/iterations": np.arange(1, sum(map(len, epochs)) + 1)}


def measured(epochs: Sequence[Sequence[tuple[Array, Array | None]]]) -> dict[str, Array]:
    """The same from the errors and weights of all batches."""
    batches = [batch for epoch in epochs for batch in epoch]
    plain = [float(np.square(e).mean()) for e, _ in batches]
    found: dict[str, Any] = {
        "batch/size": [len(e) for e, _ in batches],
        "mae/batch": [float(np.abs(e).mean()) for e, _ in batches],
    }
    for witness in ("reported", "recomputed"):
        found[f"loss/{witness}"] = to_date([_losses(epoch) for epoch in epochs])
        found[f"mae/{witness}"] = to_date([_sums(np.abs, epoch, False) for epoch in epochs])
        found[f"mse/{witness}"] = to_date([_sums(np.square, epoch, True) for epoch in epochs])
    found["loss/batch"] = [n / d for epoch in epochs for n, d in _losses(epoch)]
    if any(w is not None for _, w in batches):
        weights = [np.asarray(w, np.float64) for _, w in batches]
        found["loss/batch_unweighted"] = plain
        found["loss/weighted"] = found["loss/recomputed"]
        found["loss/all"] = to_date([_losses([(e, None) for e, _ in epoch]) for epoch in epochs])
        found["mae/all"] = found["mae/reported"]
        found["mae/weighted"] = to_date([_sums(np.abs, epoch, True) for epoch in epochs])
        found["sample_weight/mean"] = [float(w.mean()) for w in weights]
        found["sample_weight/given_mean"] = found["sample_weight/mean"]
    return found


def _losses(epoch: Sequence[tuple[Array, Array | None]]) -> list[tuple[float, float]]:
    """Keras' mean over rows of weighted losses, times rows."""
    return [
        (n, float(len(e)))
        for (e, _), (n, _) in zip(epoch, _sums(np.square, epoch, True), strict=True)
    ]


def _sums(function: Any, epoch: Any, weighted: bool) -> list[tuple[float, float]]:
    """Weighted sum of a function of the errors, mean over outputs, and the sum of weights."""
    found = []
    for errors, weight in epoch:
        values = function(errors).mean(axis=1)
        w = np.ones(len(values)) if weight is None or not weighted else np.asarray(weight, float)
        found.append((float((values * w).sum()), float(w.sum())))
    return found
