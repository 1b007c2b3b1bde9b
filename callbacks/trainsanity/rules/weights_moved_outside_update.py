from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    Parting,
    finding,
    not_measured,
    number,
    parting,
    steps_in_words,
    unit_roundoff,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity
from trainsanity.wire import Audit

MOVED = "weights/moved_outside"
NORM = "weights/sampled_norm"  # no element is larger
THERE_AND_BACK = 8  # roundings: two of a sum, each of twice the size at most, and as many again
SUBJECTS = {"seen": "a callback", "nobody": "unknown", "unwatched": "not watched"}


@dataclass(frozen=True)
class WeightsMovedOutsideUpdate(Rule):
    """Weights changed between two steps.

    Compares: sampled weights at the end of one training step and at the begin of the next;
    between them nobody should write.

    Why: a callback that loads weights, a second training loop, or faulty memory undoes training
    without a trace in the loss of that step.

    Try: find who assigns weights between batches; where it is meant (averaging, clipping),
    ignore this rule with `Expect(ignore=...)`.

    Source: our own; the same weights are read twice and compared bit by bit. A train_step of your
    own may move them and move them back, to rounding.
    """

    id = "weights-moved-outside-update"
    severity = Severity.WARNING
    needs = (MOVED,)

    @staticmethod
    def fires_on() -> RunHistory:
        return history(
            weights__moved_outside=[float("nan"), 0.0, 0.0, 0.3, 0.0],
            audits=[("moved_outside", 4, {"by": ["Logger"], "known": False})],
        )

    @staticmethod
    def quiet_on() -> RunHistory:
        """Nothing is known before the first step."""
        return history(weights__moved_outside=[float("nan"), 0.0, 0.0, 0.0, 0.0])

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(MOVED):
            raise not_measured(run, MOVED)
        rows = run.rows(MOVED)
        allowed = _rounding(run)
        audits = run.audits("moved_outside") if run.has_audit("moved_outside") else []
        kinds = np.array([_kind(_audit_at(audits, int(step))) for step in rows.steps], str)
        # One alert each for what a callback did, what none did, and what was not watched.
        for kind in ("seen", "nobody", "unwatched"):
            where = kinds == kind
            part = parting(rows, np.zeros(len(rows)), rows[MOVED], allowed, where=where)
            if part is not None:
                yield _finding(part, kind, _audit_at(audits, part.last_step))


def _rounding(run: RunView) -> float:
    """What a train_step of one's own may leave: weights are read when it applies the optimizer,
    before which it may have moved them and moved them back, as sharpness-aware minimization does.
    """
    is_own = run.has_audit("compile") and run.audit("compile").facts.get("custom_train_step")
    if not is_own or not run.has(NORM):
        return 0.0
    norms = run.rows(NORM)[NORM]
    largest = float(np.max(norms[np.isfinite(norms)], initial=0.0))
    return THERE_AND_BACK * unit_roundoff() * largest


def _audit_at(audits: list[Audit], step: int) -> Audit | None:
    """What is known of a step: an audit holds until there is another."""
    return next((audit for audit in reversed(audits) if audit.step <= step), None)


def _kind(audit: Audit | None) -> str:
    if audit is None or audit.facts.get("known") is None:
        return "unwatched"
    return "seen" if audit.facts["known"] else "nobody"


def _finding(part: Parting, kind: str, audit: Audit | None) -> Finding:
    by = audit.facts.get("by") if audit is not None else None
    named = kind == "seen" and isinstance(by, (list, tuple)) and by
    who = ", ".join(str(name) for name in by or ()) if named else SUBJECTS[kind]
    if kind == "nobody":
        cause = "No callback wrote them: another thread, train_on_batch, or faulty memory."
        cure = "Look for code outside of fit that assigns to this model's weights."
    else:
        cause = (
            f"{who} wrote them."
            if named
            else "Who wrote them was not watched: a callback, or a layer that changes its weights "
            "when it is called."
        )
        cure = "If this is meant (weight averaging, clipping), ignore it with Expect(ignore=...)."
    return finding(
        part,
        subject=who,
        title=f"Weights moved by {number(part.true)} between two steps"
        + (f", by {who}" if named else ""),
        message=(
            f"{steps_in_words(part.first_step, part.last_step).capitalize()}, sampled weights "
            f"began a step up to {number(part.true)} away from where the step before had left "
            f"them. {cause}"
        ),
        suggestion=cure,
        names=("expected movement", MOVED),
        because="nothing that runs between two steps may write",
        severity=None if kind == "nobody" else Severity.ADVICE,
    )
