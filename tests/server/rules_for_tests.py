"""A few tiny rules, so that tests of the judge do not depend on the real ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainsanity.rules import Finding, NotTestable, Rule, RunView, Severity, Witness
from trainsanity_server.services.rulebook import Rulebook


@dataclass(frozen=True)
class AccuracyDiffers(Rule):
    """Reported accuracy is not the recomputed one."""

    id = "accuracy-differs"
    severity = Severity.CRITICAL
    needs = ("accuracy/reported", "accuracy/recomputed")

    def check(self, run: RunView) -> Iterable[Finding]:
        new = run.rows("accuracy/reported", "accuracy/recomputed").new
        reported, recomputed = new["accuracy/reported"], new["accuracy/recomputed"]
        wrong = np.flatnonzero(np.abs(reported - recomputed) > 1e-6)
        if not len(wrong):
            return []
        last = wrong[-1]
        return [
            Finding(
                subject="accuracy",
                title="accuracy is not what it seems",
                message=f"reported {reported[last]:.3f}, recomputed {recomputed[last]:.3f}",
                witnesses=(
                    Witness("accuracy/reported", reported[last]),
                    Witness("accuracy/recomputed", recomputed[last]),
                ),
                suggestion="look at the mask",
                first_step=int(new.steps[wrong[0]]),
                last_step=int(new.steps[last]),
                count=len(wrong),
            )
        ]


@dataclass(frozen=True)
class LossNotFinite(Rule):
    """Loss is NaN: says the same of the whole run each time it is asked."""

    id = "loss-not-finite"
    severity = Severity.WARNING
    needs = ("loss/reported",)

    def check(self, run: RunView) -> Iterable[Finding]:
        totals = run.totals("loss/reported")
        if totals.nan + totals.inf == 0:
            return []
        return [
            Finding(
                subject="loss",
                title="loss is not finite",
                message="loss is NaN or infinite",
                witnesses=(Witness("loss/reported", float("nan")), Witness("last finite", 1.0)),
                suggestion="lower the learning rate",
                last_step=totals.last_step,
                count=totals.nan + totals.inf,
            )
        ]


@dataclass(frozen=True)
class Silent(Rule):
    """The run is silent; heals by itself."""

    id = "silent"
    severity = Severity.WARNING
    needs = ()
    heals = True

    def check(self, run: RunView) -> Iterable[Finding]:
        if run.facts.state != "silent":
            return []
        return [
            Finding(
                subject="run",
                title="the run is silent",
                message="nothing was heard",
                witnesses=(Witness("promised", run.facts.silent_after, "s"), Witness("heard", 0)),
                suggestion="look at the machine",
                last_step=run.facts.step,
            )
        ]


@dataclass(frozen=True)
class NeedsAudit(Rule):
    """Wants an audit that no run carries."""

    id = "needs-audit"
    severity = Severity.WARNING
    needs = ("audit:nowhere",)

    def check(self, run: RunView) -> Iterable[Finding]:
        raise NotTestable("the run carries no audit nowhere")


@dataclass(frozen=True)
class Broken(Rule):
    """Has a fault of its own."""

    id = "broken"
    severity = Severity.CRITICAL
    needs = ()

    def check(self, run: RunView) -> Iterable[Finding]:
        raise ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class SeesTheEnd(Rule):
    """Finds that a run ended with fewer steps than it has samples, which never happens."""

    id = "sees-the-end"
    severity = Severity.ADVICE
    needs = ("loss/reported",)

    def check(self, run: RunView) -> Iterable[Finding]:
        totals = run.totals("loss/reported")
        if not run.facts.ended or totals.last_step == run.facts.step:
            return []
        return [
            Finding(
                subject="end",
                title="the end came before the last sample",
                message="the rule saw the end too early",
                witnesses=(Witness("steps", run.facts.step), Witness("seen", totals.last_step)),
                suggestion="",
            )
        ]


RULES = (AccuracyDiffers(), Broken(), LossNotFinite(), NeedsAudit(), SeesTheEnd(), Silent())


def rulebook() -> Rulebook:
    return Rulebook(RULES)
