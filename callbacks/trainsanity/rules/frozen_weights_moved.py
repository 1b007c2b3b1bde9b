from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import measured, merged, number
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.variables import Variable, by_subject, named, variables
from trainsanity.wire import Audit


@dataclass(frozen=True)
class FrozenWeightsMoved(Rule):
    """Weights that are frozen by their flag are still being trained.

    Compares: the `trainable` flag of each weight, at the begin and at the end of an epoch, and
    how far the weight moved in between.

    Why: Keras reads the flag while it compiles the step. A flag changed afterwards is shown by
    summary() and ignored by training: the backbone you froze is being destroyed.

    Try: set `trainable` first, then compile; compile again after every change.

    Source: TensorFlow issue 36340 (a discriminator frozen after the first fit); live in Keras
    3.15.
    """

    id = "frozen-weights-moved"
    severity = Severity.CRITICAL
    needs = ("audit:weights",)

    @staticmethod
    def fires_on() -> RunHistory:
        """Frozen between two fits without a new compile."""
        return history(audits=[("weights", 10, {"variables": [_KERNEL | {"moved": 0.02}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """A frozen backbone whose batch norm statistics move, as they were never made to train."""
        mean = _KERNEL | {"path": "bn/moving_mean", "by_nature": False, "moved": 0.3}
        rows = [_KERNEL | {"moved": 0.0}, mean]
        return history(audits=[("weights", 10, {"variables": rows})])

    def check(self, run: RunView) -> list[Finding]:
        audits = measured(run, "weights")
        if not any(v.frozen for a in run.audits("weights") for v in variables(a.facts)):
            raise NotTestable("the model has no frozen weights")
        return merged(found for audit in audits for found in self._check(run, audit))

    def _check(self, run: RunView, audit: Audit) -> Iterator[Finding]:
        # NaN is no movement: what went wrong there is for nonfinite-propagation to say.
        moved = [v for v in variables(audit.facts) if v.frozen and (v.moved or 0.0) > 0.0]
        for trained in (True, False):
            part = [v for v in moved if v.in_optimizer is trained]
            for subject, group in by_subject(part).items():
                yield _finding(run, audit, subject, group, trained=trained)


def _finding(
    run: RunView, audit: Audit, subject: str, group: list[Variable], *, trained: bool
) -> Finding:
    largest = max(group, key=lambda v: v.moved or 0.0)
    who = (
        "The optimizer still holds them: the flag was changed after the step was compiled."
        if trained
        else "The optimizer does not hold them, so something else wrote to them: a moving average "
        "of a teacher, a callback, or a layer that changes its own weights."
    )
    return Finding(
        subject=subject,
        title=f"{subject}: frozen weights moved by {number(largest.moved or 0.0)}",
        message=(
            f"{named(group)} had trainable=False throughout the epoch that ended at step "
            f"{audit.step:,}, yet moved by up to {number(largest.moved or 0.0)} "
            f"({largest.path}). {who}"
        ),
        witnesses=(
            Witness(f"{largest.path} expected movement", 0.0),
            Witness(f"{largest.path} largest movement", largest.moved or 0.0),
        ),
        suggestion=(
            "Call compile() again after setting trainable=False."
            if trained
            else "If this is meant (a moving average), ignore it; else look who assigns to them."
        ),
        first_step=audit.step,
        last_step=audit.step,
        severity=_severity(run, trained=trained),
        certainty="Weights that are not trained are bit-identical, so any movement counts.",
    )


def _severity(run: RunView, *, trained: bool) -> Severity | None:
    """Milder where the movement may be meant: teachers, and steps that switch flags themselves."""
    if not trained:
        return Severity.ADVICE
    own_step = run.has_audit("compile") and run.audit("compile").facts.get("custom_train_step")
    return Severity.WARNING if own_step else None


_KERNEL = {
    "path": "backbone/conv/kernel",
    "layer": "backbone/conv",
    "trainable": False,
    "trainable_begin": False,
    "by_nature": True,
    "in_optimizer": True,
}
