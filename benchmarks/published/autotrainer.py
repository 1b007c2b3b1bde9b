"""AUTOTRAINER: Zhang, Zhai, Ma and Shen, ICSE 2021, "AUTOTRAINER: An Automatic DNN Training Problem
Detection and Repair System".

Thresholds: `AutoTrainer/utils/monitor.py` of github.com/shiningrain/AUTOTRAINER: NaN numbers;
accuracy that never reaches 0.7 or never rises by 0.01 in an epoch, together with 0.7 of all
gradients 0 (dying relu), a ratio of the first to the last layer's gradient above 70 (explosion), or
below 1e-3 with the first below 1e-4 (vanishing), else slow convergence; accuracy that swings by
0.03 in a fifth of the epochs (oscillating). We know each kernel's largest gradient instead of its
norm, and no share of zeros, so dying relu is left out. Judged where accuracy is shown, and after
0.3 of at least 3 epochs, as it needs a course.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from published.evidence import Evidence, Series

THETA, DELTA, ZETA, ETA = 0.7, 0.01, 0.03, 0.2
VANISHING_RATIO, VANISHING_FIRST, EXPLODING_RATIO = 1e-3, 1e-4, 70.0


def judge(found: Evidence) -> Iterator[tuple[str, frozenset[str]]]:
    """Symptoms, each with the rules of ours that would be the right diagnosis with it."""
    if found.is_nonfinite or np.isnan(found.batch_losses).any():
        yield "exploding", frozenset({"nonfinite-propagation", "exploding-gradient"})
        return
    accuracy = found.accuracies
    if accuracy.size < 3:
        return
    slow = float(np.diff(accuracy).max()) < DELTA
    if float(accuracy.max()) < THETA or slow:
        ratios = list(_ratios(found))
        if any(ratio > EXPLODING_RATIO for ratio, _ in ratios):
            yield "exploding gradient", frozenset({"exploding-gradient"})
        elif any(r < VANISHING_RATIO and first < VANISHING_FIRST for r, first in ratios):
            yield "vanishing gradient", frozenset({"vanishing-gradient", "dead-weights"})
        elif slow:
            yield "not converging", frozenset({"loss-not-decreasing", "lr-effective-mismatch"})
    elif _oscillates(accuracy):
        yield "oscillating", frozenset({"loss-oscillating"})


def _ratios(found: Evidence) -> Iterator[tuple[float, float]]:
    """Of each epoch: first kernel's gradient to the last one's, and the first one's."""
    for rows in found.kernels():
        sizes = [row.get("gradient_largest") for row in rows]
        if len(sizes) > 1 and sizes[0] is not None and sizes[-1]:
            yield sizes[0] / sizes[-1], sizes[0]


def _oscillates(accuracy: Series) -> bool:
    inner, left, right = accuracy[1:-1], accuracy[:-2], accuracy[2:]
    highs = inner[(inner >= left) & (inner >= right)]
    lows = inner[(inner <= left) & (inner <= right)]
    pairs = min(highs.size, lows.size)
    swings = int((highs[:pairs] - lows[:pairs] >= ZETA).sum())
    return swings > 0 and swings >= ETA * accuracy.size
