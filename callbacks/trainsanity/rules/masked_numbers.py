"""What Keras shows against the same number over the positions that are real by the input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    Flags,
    Parting,
    finite_rows,
    name_of,
    parting,
    relative_gap,
    unit_roundoff,
)
from trainsanity.rules.history import Floats, Rows, RunView
from trainsanity.rules.rule import Witness
from trainsanity.rules.shown_metrics import ShownMetric, in_words, metrics_of, rounding_of

# A share is a count divided by a count, both exact in float32 below 2^24 positions a batch: one
# rounding each, and a store on the tape.
SHARE_TOLERANCE = 4 * unit_roundoff("float32")
# Which numbers to show first where there are several; no threshold of any alert.
PLAIN_GAP = 0.05


@dataclass(frozen=True)
class ShownAndReal:
    """A metric as shown and over real positions, and where the two part."""

    metric: ShownMetric
    part: Parting

    def in_words(self) -> str:
        over = "Over the positions that are not padding"
        return in_words(self.metric.key, self.part.shown, self.part.true, over)

    @property
    def gap(self) -> float:
        """Relative to the larger of the two."""
        return float(relative_gap(self.part.shown, self.part.true))

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.metric.key}/reported", f"{self.metric.key}/unmasked"

    @property
    def witnesses(self) -> tuple[Witness, Witness]:
        shown, true = self.names
        return Witness(shown, self.part.shown), Witness(true, self.part.true)


def comparable(run: RunView, mask: str) -> list[ShownMetric]:
    """Metrics of the output whose positions can be counted again; weighted ones mean more."""
    metrics = [m for m in metrics_of(run, name_of(mask)) if not m.weighted and m.recomputed_by]
    return [m for m in metrics if run.has(f"{m.key}/reported", f"{m.key}/unmasked")]


def counts_padding(run: RunView, mask: str) -> ShownAndReal | None:
    """The metric that padding changes most, in batches that gave metrics too large a mask."""
    if not run.has(f"{mask}/metric_coverage"):
        return None
    found = []
    for metric in comparable(run, mask):
        if metric.is_own:
            continue  # may leave padding out by itself
        rows, shown, true = _pair(run, metric, f"{mask}/metric_coverage", f"{mask}/input_coverage")
        more = rows[f"{mask}/metric_coverage"] - rows[f"{mask}/input_coverage"] > SHARE_TOLERANCE
        found.append(_parted(run, metric, rows, shown, true, where=more))
    return most_telling(found)


def comparisons(run: RunView, mask: str) -> list[ShownAndReal | None]:
    """Every metric, and the loss, as shown and over real positions."""
    pairs = [(metric, *_pair(run, metric)) for metric in comparable(run, mask)]
    return [*(_parted(run, *pair) for pair in pairs), padded_loss(run, mask)]


def most_telling(found: Iterable[ShownAndReal | None]) -> ShownAndReal | None:
    """The first whose gap nobody can overlook, else that with the largest gap."""
    some = [each for each in found if each is not None]
    plain = [each for each in some if each.gap >= PLAIN_GAP]
    return plain[0] if plain else max(some, key=lambda each: each.gap, default=None)


def ignores_its_mask(run: RunView, mask: str) -> ShownAndReal | None:
    """A metric that gets a mask and counts every position all the same."""
    for metric in comparable(run, mask):
        if metric.recomputed_by != "overridden update_state" or not run.has(f"{metric.key}/all"):
            continue
        rows, shown, true = _pair(run, metric, f"{metric.key}/all", f"{mask}/metric_coverage")
        everything = rows[f"{metric.key}/all"]
        counts_all = np.abs(shown - everything) <= rounding_of(
            run, metric.key, rows.steps, shown, everything
        )
        masked = rows[f"{mask}/metric_coverage"] < 1 - SHARE_TOLERANCE
        found = _parted(run, metric, rows, shown, true, where=counts_all & masked)
        if found is not None:
            return found
    return None


def padded_loss(run: RunView, mask: str) -> ShownAndReal | None:
    """The loss of this output, where it differs over real positions."""
    return next((_parted(run, loss, *_pair(run, loss)) for loss in _loss(run, mask)), None)


def _loss(run: RunView, mask: str) -> list[ShownMetric]:
    """The loss of the output, where its positions can be counted again."""
    output = name_of(mask)
    loss = ShownMetric(f"{output}_loss" if output else "loss")
    return [loss] if run.has(f"{loss.key}/reported", f"{loss.key}/unmasked") else []


def _metrics_are_masked(run: RunView, mask: str) -> bool:
    """Whether metrics count no more positions than the loss does."""
    if not run.has(f"{mask}/metric_coverage", f"{mask}/loss_coverage"):
        return False
    rows = run.rows(f"{mask}/metric_coverage", f"{mask}/loss_coverage")
    more = rows[f"{mask}/metric_coverage"] - rows[f"{mask}/loss_coverage"]
    return not np.any(more > SHARE_TOLERANCE)


def flattered(
    run: RunView, mask: str, *, score: float, error: float, patience: int
) -> ShownAndReal | None:
    """A metric that looks better as shown than over all real positions, materially and lastingly;
    the loss, where metrics are not given the mask that the loss is given, as on JAX.

    Args:
        score: gap that matters, of a score in 0..1.
        error: gap that matters, as a share of the larger of two errors.
        patience: batches in a row.
    """
    metrics = comparable(run, mask)
    if metrics and not _metrics_are_masked(run, mask):
        metrics = _loss(run, mask)
    for metric in metrics:
        rows, shown, true = _pair(run, metric)
        better = shown > true if metric.higher_is_better else shown < true
        scale = np.maximum(np.abs(shown), np.abs(true))
        matters = np.full(len(rows), score) if metric.higher_is_better else error * scale
        part = parting(rows, shown, true, np.where(better, matters, np.inf), patience=patience)
        if part is not None:
            return ShownAndReal(metric, part)
    return None


def _pair(run: RunView, metric: ShownMetric, *also: str) -> tuple[Rows, Floats, Floats]:
    names = f"{metric.key}/reported", f"{metric.key}/unmasked"
    rows = finite_rows(run.rows(*names, *also))
    return rows, rows[names[0]], rows[names[1]]


def _parted(
    run: RunView,
    metric: ShownMetric,
    rows: Rows,
    shown: Floats,
    true: Floats,
    where: Flags | None = None,
) -> ShownAndReal | None:
    tolerance = rounding_of(run, metric.key, rows.steps, shown, true)
    part = parting(rows, shown, true, tolerance, where=where)
    return None if part is None else ShownAndReal(metric, part)
