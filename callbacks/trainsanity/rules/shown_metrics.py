"""The metrics that Keras shows, as the audit `columns` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
    HALF,
    batches_in_epoch,
    maps,
    mean_tolerance,
    text,
    two_numbers,
    unit_roundoff,
    whole,
)
from trainsanity.rules.history import Floats, RunView, Steps

# Validation batches, where no audit tells how many there were.
MANY_BATCHES = 10_000
# Share of positions whose two largest outputs may lie within a rounding of each other, in units of
# that; our own judgement, some ten times what evenly spread outputs give.
TIES = 16

_HIGHER = ("accuracy", "precision", "recall", "auc", "iou", "f1", "fbeta", "r2", "cosine", "dice")


@dataclass(frozen=True)
class ShownMetric:
    """One key of Keras' logs.

    Attributes:
        output: name of the output it scores; "" for the only one.
        weighted: compiled under `weighted_metrics=`.
        recomputed_by: "reference", "own function", "overridden update_state"; "" where it is not.
        reason: why it is not recomputed.
        mean_of: "positions" or "samples".
    """

    key: str
    kind: str = ""
    output: str = ""
    weighted: bool = False
    recomputed_by: str = ""
    reason: str = ""
    mean_of: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Whether the kind is a score rather than an error."""
        kind = (self.kind or self.key).lower().replace("_", "")
        return any(word in kind for word in _HIGHER)

    @property
    def is_own(self) -> bool:
        """Whether code of the user's takes part, so that another meaning may be on purpose."""
        return self.recomputed_by in ("own function", "overridden update_state")

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> ShownMetric:
        return cls(
            key=text(facts, "key") or "",
            kind=text(facts, "kind") or "",
            output=text(facts, "output") or "",
            weighted=facts.get("weighted") is True,
            recomputed_by=text(facts, "recomputed_by") or "",
            reason=text(facts, "reason") or "",
            mean_of=text(facts, "mean_of") or "",
        )


def shown_metrics(run: RunView) -> dict[str, ShownMetric]:
    """Metrics other than the loss, by key; empty where the audit is missing."""
    if not run.has_audit("columns"):
        return {}
    found = [ShownMetric.of(facts) for facts in maps(run.audit("columns").facts, "metrics")]
    return {metric.key: metric for metric in found if metric.key}


def metrics_of(run: RunView, output: str) -> list[ShownMetric]:
    """Metrics of one output."""
    return [metric for metric in shown_metrics(run).values() if metric.output == output]


def rounding_of(run: RunView, key: str, steps: Steps, *values: Floats) -> Floats:
    """How far two honest epoch-to-date means of this metric can lie apart, at each step.

    Args:
        key: as in Keras' logs; validation begins with `val_`.
        values: the means, and the batch values where there are any; shape (n,).
    """
    batches = batches_averaged(run, key, steps)
    ties = _ties(run, key, batches)
    return mean_tolerance(*values, batches=batches) + _outputs_rounding(run, *values) + ties


def batches_averaged(run: RunView, key: str, steps: Steps) -> Floats:
    """An upper bound of the batches in an epoch-to-date mean at each step."""
    if not key.startswith("val_"):
        return batches_in_epoch(run, steps).astype(np.float64)
    known = [
        batches
        for audit in (run.audits("evaluate") if run.has_audit("evaluate") else ())
        if (batches := whole(audit.facts, "batches")) is not None
    ]
    return np.full(len(steps), float(max(known, default=MANY_BATCHES)))


def _ties(run: RunView, key: str, batches: Floats) -> Floats:
    """Of a count of hits where outputs are in half precision: one use may round two of them to the
    same number and another use not, so that a hit is a miss.
    """
    unit = _unit_of_half(run)
    metric = shown_metrics(run).get(key.removeprefix("val_"))
    if unit == 0.0 or metric is None or "accuracy" not in (metric.kind or key).lower():
        return np.zeros(len(batches))
    return TIES * unit + 1.0 / batches  # one position at least, of one in every batch at least


def _outputs_rounding(run: RunView, *values: Floats) -> Floats:
    """Outputs in half precision may be rounded in one use and kept exact in another, under XLA."""
    # One rounding of each of label-side and output-side operands, doubled by a product or square.
    relative = 4 * _unit_of_half(run)
    scale: Floats = np.max(np.broadcast_arrays(*[np.abs(v) for v in values]), axis=0)
    return np.asarray(relative * scale, np.float64)


def _outputs(run: RunView) -> list[Mapping[str, Any]]:
    return list(maps(run.audit("columns").facts, "outputs")) if run.has_audit("columns") else []


def loss_dtype(run: RunView) -> str:
    """The coarsest of what losses are computed in: Keras' `floatx`, unless told otherwise."""
    said = [output.get("loss_dtypes") for output in _outputs(run)]
    every = [str(dtype) for dtypes in said if isinstance(dtypes, list) for dtype in dtypes]
    return max(every, key=unit_roundoff, default="float32")


def loss_tolerance(run: RunView, *values: Floats) -> Floats:
    """How far two honest losses of one batch can lie apart by rounding alone; shape (n,)."""
    return mean_tolerance(*values, dtype=loss_dtype(run))


def _unit_of_half(run: RunView) -> float:
    """The unit roundoff of outputs in half precision; 0 where there are none."""
    half = {text(output, "dtype") or "" for output in _outputs(run)} & HALF
    return max((unit_roundoff(dtype) for dtype in half), default=0.0)


def in_words(key: str, shown: float, true: float, over: str) -> str:
    """`Keras reports accuracy 0.56. Over the positions that are not padding it is 0.22.`"""
    left, right = two_numbers(shown, true)
    return f"Keras reports {key} {left}. {over} it is {right}."
