"""The metrics that Keras shows, as the audit `columns` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
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
    return mean_tolerance(*values, batches=batches) + _outputs_rounding(run, *values)


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


def _outputs_rounding(run: RunView, *values: Floats) -> Floats:
    """Outputs in half precision may be rounded in one use and kept exact in another, under XLA."""
    dtypes = {
        text(output, "dtype") or "float32"
        for output in (
            maps(run.audit("columns").facts, "outputs") if run.has_audit("columns") else ()
        )
    }
    half = dtypes & {"float16", "bfloat16"}
    # One rounding of each of label-side and output-side operands, doubled by a product or square.
    relative = 4 * max((unit_roundoff(dtype) for dtype in half), default=0.0)
    scale: Floats = np.max(np.broadcast_arrays(*[np.abs(v) for v in values]), axis=0)
    return np.asarray(relative * scale, np.float64)


def in_words(key: str, shown: float, true: float, over: str) -> str:
    """`Keras reports accuracy 0.56. Over the positions that are not padding it is 0.22.`"""
    left, right = two_numbers(shown, true)
    return f"Keras reports {key} {left}. {over} it is {right}."
