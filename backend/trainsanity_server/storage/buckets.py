"""Summaries of stretches of samples: for charts with more samples than pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Buckets:
    """k signals over b stretches of consecutive samples.

    Attributes:
        first_step, last_step, rows: shape (b,); rows is the number of samples of each signal.
        min, max, sum: shape (k, b), over finite values; NaN, NaN and 0 where there is none.
        first, last: shape (k, b); the samples themselves, NaN and infinities too.
        nan, inf: shape (k, b); how many samples are so.
    """

    first_step: Whole
    last_step: Whole
    rows: Whole
    min: Floats
    max: Floats
    sum: Floats
    first: Floats
    last: Floats
    nan: Whole
    inf: Whole

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def finite(self) -> Whole:
        finite: Whole = self.rows - self.nan - self.inf
        return finite

    @property
    def mean(self) -> Floats:
        """Over finite values; NaN where there is none."""
        mean = np.full(self.sum.shape, np.nan)
        np.divide(self.sum, self.finite, out=mean, where=self.finite > 0)
        return mean

    def __getitem__(self, at: Any) -> Buckets:
        """Some of the stretches."""
        return Buckets(**{f.name: getattr(self, f.name)[..., at] for f in fields(self)})

    def signal(self, index: int) -> Buckets:
        """One of the signals, as k = 1."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return Buckets(
            **{n: c if c.ndim == 1 else c[index : index + 1] for n, c in columns.items()}
        )


def from_rows(steps: Whole, values: NDArray[Any], rows: int) -> Buckets:
    """Buckets of `rows` consecutive samples each, the last one perhaps shorter.

    Args:
        steps: shape (n,), n at least 1. values: shape (k, n).
    """
    starts = np.arange(0, len(steps), rows)
    ends = np.append(starts[1:], len(steps)) - 1
    values = values.astype(np.float64, copy=False)
    finite = np.isfinite(values)
    nan = np.isnan(values)
    count = np.add.reduceat(finite, starts, axis=1, dtype=np.int64)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts, axis=1)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts, axis=1)
    nans = np.add.reduceat(nan, starts, axis=1, dtype=np.int64)
    total = ends - starts + 1
    return Buckets(
        first_step=steps[starts].astype(np.int64),
        last_step=steps[ends].astype(np.int64),
        rows=total.astype(np.int64),
        min=np.where(count > 0, low, np.nan),
        max=np.where(count > 0, high, np.nan),
        sum=_sums(np.where(finite, values, 0.0), starts),
        first=values[:, starts],
        last=values[:, ends],
        nan=nans,
        inf=total - count - nans,
    )


def joined(parts: Sequence[Buckets]) -> Buckets:
    """All stretches of the parts, in the order of their first steps."""
    columns = {
        f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=-1)
        for f in fields(Buckets)
    }
    order = np.argsort(columns["first_step"], kind="stable")
    if (order[1:] > order[:-1]).all():
        return Buckets(**columns)
    return Buckets(**{name: column[..., order] for name, column in columns.items()})


def thinned(buckets: Buckets, most: int) -> Buckets:
    """Neighbours merged until there are `most` stretches or fewer; loses no extreme."""
    if len(buckets) <= most:
        return buckets
    width = -(-len(buckets) // most)
    starts = np.arange(0, len(buckets), width)
    return merged(buckets, starts)


def merged(buckets: Buckets, starts: NDArray[np.int64]) -> Buckets:
    """One stretch for all those from one start up to the next."""
    ends = np.append(starts[1:], len(buckets)) - 1
    return Buckets(
        first_step=buckets.first_step[starts],
        # Stretches may overlap where a run went back.
        last_step=np.maximum.reduceat(buckets.last_step, starts),
        rows=np.add.reduceat(buckets.rows, starts),
        min=np.fmin.reduceat(buckets.min, starts, axis=1),
        max=np.fmax.reduceat(buckets.max, starts, axis=1),
        sum=_sums(buckets.sum, starts),
        first=buckets.first[:, starts],
        last=buckets.last[:, ends],
        nan=np.add.reduceat(buckets.nan, starts, axis=1),
        inf=np.add.reduceat(buckets.inf, starts, axis=1),
    )


def _sums(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """A sum that float64 cannot hold is infinite, as its mean would be."""
    with np.errstate(over="ignore"):
        return np.add.reduceat(values, starts, axis=1)
