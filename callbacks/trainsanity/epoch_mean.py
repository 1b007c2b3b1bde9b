"""Means since the epoch began, batch by batch, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainsanity.probes.probe import Columns, Probe
from trainsanity.tape import TapeRows

# Ways to count: as Keras does; where the input is real; everything; by sample weights.
VARIANTS = ("recomputed", "unmasked", "all", "weighted")

Floats = np.ndarray[Any, np.dtype[np.float64]]


class EpochMean:
    """Running weighted means by name, as Keras' metrics keep them, but exact to double
    precision.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def reset(self) -> None:
        """A new epoch begins."""
        self._sums.clear()

    def extend(self, name: str, numerators: Floats, denominators: Floats) -> Floats:
        """The mean after each of the batches.

        Args:
            numerators, denominators: shape (batches,).

        Returns:
            Shape (batches,); NaN where nothing has counted yet (Keras shows 0 there).
        """
        before_n, before_d = self._sums.get(name, (0.0, 0.0))
        n = before_n + np.cumsum(numerators, dtype=np.float64)
        d = before_d + np.cumsum(denominators, dtype=np.float64)
        if len(n):
            self._sums[name] = (float(n[-1]), float(d[-1]))
        return _divided(n, d)

    @staticmethod
    def of_each(numerators: Floats, denominators: Floats) -> Floats:
        """The mean of each batch alone; NaN where nothing counted."""
        return _divided(numerators, denominators)


class EpochMeans(Probe):
    """Base of probes that go on with a mean from batch to batch: in training since the epoch began,
    in a test pass since the pass began.
    """

    every_batch = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._training, self._testing = EpochMean(), EpochMean()

    def columns(self, rows: TapeRows, means: EpochMean) -> Columns:
        raise NotImplementedError

    def on_epoch_begin(self, epoch: int) -> None:
        self._training.reset()

    def on_rows(self, rows: TapeRows) -> Columns:
        return self.columns(rows, self._training)

    def on_test_begin(self) -> None:
        self._testing.reset()

    def on_test_rows(self, rows: TapeRows) -> Columns:
        return self.columns(rows, self._testing)


def _divided(numerators: Floats, denominators: Floats) -> Floats:
    means: Floats = np.full(len(numerators), np.nan)
    np.divide(numerators, denominators, out=means, where=denominators != 0)
    return means
