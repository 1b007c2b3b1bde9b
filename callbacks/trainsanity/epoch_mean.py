"""Means since the epoch began, batch by batch, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

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


def _divided(numerators: Floats, denominators: Floats) -> Floats:
    means: Floats = np.full(len(numerators), np.nan)
    np.divide(numerators, denominators, out=means, where=denominators != 0)
    return means
