from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    maps,
    measured,
    merged,
    real,
    relative_gap,
    share,
    text,
    two_numbers,
    whole,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class BatchDependentMetric(Rule):
    """A metric depends on how the data is cut into batches.

    Compares: what a metric given as a function says of a few batches of the training data as one,
    with the mean of what it says of each, on the same predictions; of the captured rows as two
    where the data is no array.

    Why: Keras averages what a function returns over batches. An F1, a precision, a correlation or
    a root of a mean square of an epoch is not the mean of those of its batches: the number shown
    is none of the data, and changes with batch_size.

    Try: a metric that counts over the whole epoch, such as keras.metrics.F1Score, Precision,
    Recall, R2Score or RootMeanSquaredError; or a subclass of keras.metrics.Metric that adds up
    what the number is made of.

    Source: Keras 2.0 took precision, recall and fbeta_score out of its functions for this reason
    (keras issue 5794). How large the gap must be is our own judgement: it is smaller for a root
    of a mean, and for a mean over positions of which one row has more than another.
    """

    id = "batch-dependent-metric"
    severity = Severity.ADVICE
    needs = ("audit:metric_cuts",)

    material: float = 0.1  # of the larger of the two numbers

    @staticmethod
    def fires_on() -> RunHistory:
        """True positives lie in some batches, false ones in others."""
        return _example(mean=0.4)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(mean=0.6)

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            found
            for audit in measured(run, "metric_cuts")
            for row in maps(audit.facts, "metrics")
            for found in self._of(audit, row)
        )

    def _of(self, audit: Audit, row: Mapping[str, Any]) -> Iterator[Finding]:
        together, apart = real(row, "whole"), real(row, "mean")
        if together is None or apart is None:
            return
        gap = float(relative_gap(together, apart))
        if not gap > self.material:
            return
        key = text(row, "key") or "a metric"
        rows, size = (whole(audit.facts, name) or 0 for name in ("rows", "batch"))
        left, right = two_numbers(together, apart)
        yield Finding(
            subject=key,
            title=f"{key} depends on how the data is cut into batches",
            message=f"Of the same {rows:,} rows and predictions, {key} says {left} as one batch; "
            f"as batches of {size:,} it says {right} on average. Keras shows the mean over the "
            f"batches of an epoch: {key} of the epoch's data is another number, and another "
            "batch_size would show another one.",
            witnesses=(
                Witness("all rows as one batch", together),
                Witness("mean of the batches", apart),
            ),
            suggestion="Use a metric that counts over the whole epoch, such as "
            "keras.metrics.F1Score, Precision, Recall, R2Score or RootMeanSquaredError.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=f"The gap is {share(gap)} of the larger number; {share(self.material)} are "
            "allowed.",
        )


def _example(*, mean: float) -> RunHistory:
    row = {"key": "f1", "whole": 0.62, "mean": mean}
    return history(audits=[("metric_cuts", 12, {"rows": 128, "batch": 32, "metrics": [row]})])
