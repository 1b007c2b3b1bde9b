"""The small curve beside a run in the list."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainsanity.rules import RunView
from trainsanity.rules.history import Floats

POINTS = 48
# What people look at first, in this order.
FIRST_CHOICES = ("loss/reported", "loss/batch", "loss/recomputed")


def sparkline(run: RunView) -> dict[str, Any] | None:
    """`{"signal": name, "values": [...], "last": sample}`; means of 48 stretches or fewer.

    A value is None where no sample of its stretch is finite.
    """
    name = next((name for name in FIRST_CHOICES if run.has(name)), None)
    if name is None:
        name = next(iter(run.names("*/reported")), None)
    if name is None:
        return None
    means = run.overview(name).mean
    if not len(means):
        return None
    parts = np.array_split(means, min(POINTS, len(means)))
    values = [_mean(part[np.isfinite(part)]) for part in parts]
    return {"signal": name, "values": values, "last": run.totals(name).last}


def _mean(values: Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None
