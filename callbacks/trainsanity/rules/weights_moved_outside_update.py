from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    Flags,
    finding,
    not_measured,
    number,
    parting,
    steps_in_words,
)
from trainsanity.rules.history import Rows, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity
from trainsanity.wire import Audit

MOVED = "weights/moved_outside"


@dataclass(frozen=True)
class WeightsMovedOutsideUpdate(Rule):
    """Weights changed between two steps.

    Compares: sampled weights at the end of one training step and at the begin of the next;
    between them nobody should write.

    Why: a callback that loads weights, a second training loop, or faulty memory undoes training
    without a trace in the loss of that step.

    Try: find who assigns weights between batches; where it is meant (averaging, clipping),
    ignore this rule with `Expect(ignore=...)`.

    Source: our own; the same weights are read twice and compared bit by bit.
    """

    id = "weights-moved-outside-update"
    severity = Severity.WARNING
    needs = (MOVED,)

    @staticmethod
    def fires_on() -> RunHistory:
        return history(weights__moved_outside=[float("nan"), 0.0, 0.0, 0.3, 0.0])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Nothing is known before the first step."""
        return history(weights__moved_outside=[float("nan"), 0.0, 0.0, 0.0, 0.0])

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(MOVED):
            raise not_measured(run, MOVED)
        rows = run.rows(MOVED)
        audits = run.audits("moved_outside") if run.has_audit("moved_outside") else []
        by_step = {audit.step: audit for audit in audits if audit.facts.get("known")}
        owned = np.isin(rows.steps, list(by_step))
        yield from _check(rows, owned, by_step, known=True)
        yield from _check(rows, ~owned, by_step, known=False)


def _check(
    rows: Rows, where: Flags, by_step: dict[int, Audit], *, known: bool
) -> Iterator[Finding]:
    part = parting(rows, np.zeros(len(rows)), rows[MOVED], 0.0, where=where)
    if part is None:
        return
    by = by_step[part.last_step].facts.get("by") if known else None
    who = ", ".join(str(name) for name in by) if isinstance(by, (list, tuple)) and by else None
    yield finding(
        part,
        subject=who or "unknown",
        title=f"Weights moved by {number(part.true)} between two steps"
        + (f", by {who}" if who else ""),
        message=(
            f"{steps_in_words(part.first_step, part.last_step).capitalize()}, sampled weights "
            f"began a step up to {number(part.true)} away from where the step before had left "
            "them. "
            + (
                f"{who} wrote them."
                if who
                else "Nobody could be seen writing them: another thread, train_on_batch, or "
                "faulty memory."
            )
        ),
        suggestion=(
            "If this is meant (weight averaging, clipping), ignore it with Expect(ignore=...)."
            if who
            else "Look for code outside of fit that assigns to this model's weights."
        ),
        names=("expected movement", MOVED),
        because="nothing that runs between two steps may write",
        severity=Severity.ADVICE if who else None,
    )
