from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import finding, measured, number, parting, real, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit

ITERATIONS = "optimizer/iterations"


@dataclass(frozen=True)
class OptimizerStateReset(Rule):
    """The optimizer forgot what it had learnt.

    Compares: the optimizer's counter after each step with the step before; and its counter and
    slots (momentum, second moments) when a fit begins with what the fit before left.

    Why: Adam without its moments takes steps of full size again, schedules start over, and the
    loss jumps.

    Try: do not compile between phases unless you mean it; save and load the optimizer with the
    model.

    Source: our own.
    """

    id = "optimizer-state-reset"
    severity = Severity.WARNING
    needs = (ITERATIONS,)

    @staticmethod
    def fires_on() -> RunHistory:
        """A callback that compiles again in the middle."""
        return history(optimizer__iterations=[1, 2, 3, 1, 2])

    @staticmethod
    def quiet_on() -> RunHistory:
        """A step that loss scaling skipped, and accumulation over two batches."""
        return history(optimizer__iterations=[0, 1, 1, 1, 2])

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(ITERATIONS) and not run.has_audit("optimizer_state"):
            raise NotTestable(f"the run carries no signal {ITERATIONS}")
        if run.has(ITERATIONS):
            yield from _within(run)
        if run.has_audit("optimizer_state"):
            for audit in measured(run, "optimizer_state"):
                yield from _between(audit)


def _within(run: RunView) -> Iterator[Finding]:
    rows = run.rows(ITERATIONS)
    now = rows[ITERATIONS]
    last, before = (np.concatenate([np.full(n, np.nan), now])[: len(now)] for n in (1, 2))
    # Low for two steps: a step that broke off where the data ended may show nothing for once.
    part = parting(rows, before, now, 0.0, where=(now < before) & (last < before))
    if part is None:
        return
    yield finding(
        part,
        subject="optimizer.iterations",
        title=f"optimizer.iterations fell from {number(part.shown)} to {number(part.true)}",
        message=(
            f"Up to step {part.last_step:,} the optimizer's counter fell from {number(part.shown)} "
            f"to {number(part.true)}. Somebody compiled again or loaded an older state; schedules "
            "and bias corrections start over."
        ),
        suggestion="Do not compile or load states in a callback, or load the optimizer's too.",
        names=(f"{ITERATIONS} two steps before", ITERATIONS),
        because="the counter only grows",
    )


def _between(audit: Audit) -> Iterator[Finding]:
    facts = audit.facts
    now, left = whole(facts, "iterations"), whole(facts, "iterations_left")
    again = bool(facts.get("recompiled"))
    if now is not None and left is not None and now < left:
        yield Finding(
            subject="optimizer between fits",
            title=f"The optimizer starts at {now:,}, the fit before left it at {left:,}",
            message=(
                f"This fit began with optimizer.iterations = {now:,}; the fit before ended with "
                f"{left:,}. "
                + (
                    "compile() was called in between, which makes a new optimizer without momentum."
                    if again
                    else "Nobody compiled in between."
                )
            ),
            witnesses=(
                Witness("left by the fit before", left, "updates"),
                Witness("at the begin of this fit", now, "updates"),
            ),
            suggestion="If you only change trainable flags, keep model.optimizer when compiling.",
            first_step=audit.step,
            last_step=audit.step,
            severity=Severity.ADVICE if again else None,
            certainty="Both are counts.",
        )
        return
    slots, norm, norm_left = whole(facts, "slots"), real(facts, "slots_norm"), None
    norm_left = real(facts, "slots_norm_left")
    if slots and norm == 0.0 and now:
        known = norm_left is not None and norm_left > 0 and not again
        yield Finding(
            subject="optimizer slots",
            title=f"The optimizer counts {now:,} updates, but its {slots:,} slots are empty",
            message=(
                f"optimizer.iterations is {now:,}, yet momentum and moments are all 0"
                + (f"; the fit before left a norm of {number(norm_left or 0.0)}" if known else "")
                + ". The counter was carried over without the state, so bias correction no longer "
                "fits it and the first steps are wrong in size."
            ),
            witnesses=(
                Witness("updates counted", now, "updates"),
                Witness("norm of the slots", 0.0),
            ),
            suggestion="Load the optimizer's variables with the weights, or set iterations to 0.",
            first_step=audit.step,
            last_step=audit.step,
            severity=None if known else Severity.ADVICE,
            certainty="After one update with a gradient no slot is exactly 0 everywhere.",
        )
