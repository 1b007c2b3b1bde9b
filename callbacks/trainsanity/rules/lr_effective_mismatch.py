from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    HALF,
    finding,
    maps,
    number,
    parting,
    real,
    relative_gap,
    steps_in_words,
    text,
    two_numbers,
)
from trainsanity.rules.history import Floats, Rows, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness

DECLARED, APPLIED, EFFECTIVE = (
    f"learning_rate/{witness}" for witness in ("declared", "applied", "effective")
)
MOVED, PULL = "update/sampled_norm", "gradient/sampled_norm"
CAUSES = {
    "callable": (
        "The learning rate is a callable: Keras calls it once while the step is compiled, and "
        "every later value is shown but not used.",
        "Pass a number and assign to optimizer.learning_rate, or pass a "
        "keras.optimizers.schedules.LearningRateSchedule.",
    ),
    "schedule": (
        "The schedule gives another value inside the compiled step than outside, for example "
        "because it reads Python state.",
        "Compute the rate from the step argument alone, with keras.ops.",
    ),
    "number": (
        "The compiled step holds a value of its own, for example because the optimizer was "
        "replaced or its rate was set on another object.",
        "Assign to model.optimizer.learning_rate, and compile again after a new optimizer.",
    ),
}


@dataclass(frozen=True)
class LrEffectiveMismatch(Rule):
    """The learning rate that is shown is not the one that moves the weights.

    Compares: the rate as `optimizer.learning_rate` shows it, the rate read inside the compiled
    step, and the rate inferred from how far the weights moved against a shadow optimizer; the
    rate and gradients above 0 with weights that never move; and numbers set on the optimizer
    under a name that Keras ignores (`optimizer.lr = ...`).

    Why: schedules, warm-up and reductions then happen on paper only; the training that you tune
    is not the training that runs.

    Try: assign to `optimizer.learning_rate`, or pass a schedule object instead of a callable.

    Source: TensorFlow issue 31324, live in Keras 3.15; shadow measured exact to 1e-3 for
    element-wise optimizers and to 1e-2 for Adadelta.
    """

    id = "lr-effective-mismatch"
    severity = Severity.CRITICAL
    needs = (DECLARED,)

    # Shown against applied. Relative, of the shown rate: a schedule's chain of float32 operations
    # (powers of up to 1e3 roundings of 6e-8), compiled in another way.
    rounding: float = 1e-4
    # Share of the largest rate so far: cosine schedules end in 1 + cos(π), where the result is
    # small and the error is not (some roundings of 6e-8).
    cancellation: float = 1e-6
    patience: int = 2  # times in a row that the host read the rate, which may be every 64 steps
    # Applied against effective: relative, ten times the error of the least exact shadow (Adadelta).
    shadow_tolerance: float = 0.1
    shadow_patience: int = 10  # steps in a row
    # How long no weight moves: gradients are seldom added up over more.
    still_steps: int = 32  # steps with a rate and a gradient above 0
    still_epochs: int = 2  # whole epochs

    @staticmethod
    def fires_on() -> RunHistory:
        """A callable that turned 0.0 for the host, while the graph kept 0.1."""
        return history(
            learning_rate__declared=[0.1] * 5 + [0.0] * 5, learning_rate__applied=[0.1] * 10
        )

    @staticmethod
    def quiet_on() -> RunHistory:
        """A rate cut between two steps by a callback, and momentum that goes on at rate 0."""
        rates = [0.1] * 5 + [0.0] * 5
        return history(
            learning_rate__declared=rates,
            learning_rate__applied=rates,
            learning_rate__effective=[0.1] * 5 + [float("nan")] * 5,
        )

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(DECLARED) or not (run.has(APPLIED) or run.has(EFFECTIVE)):
            raise NotTestable("the run does not carry the learning rate from two witnesses")
        if run.has(APPLIED):
            yield from self._shown_against_applied(run)
        if run.has(EFFECTIVE):
            yield from self._told_against_effective(run)
        if run.has(APPLIED, MOVED, PULL):
            yield from self._nothing_moves(run)
        yield from self._ignored_attributes(run)

    def _shown_against_applied(self, run: RunView) -> Iterator[Finding]:
        rows = run.rows(DECLARED, APPLIED)
        shown, applied = rows[DECLARED], nearest_in_time(rows, run.rows(APPLIED))
        largest = max(run.totals(DECLARED).max, run.totals(APPLIED).max)
        tolerance = self.rounding * np.abs(shown) + self.cancellation * largest
        part = parting(rows, shown, applied, tolerance, patience=self.patience)
        if part is None:
            return
        a, b = two_numbers(part.shown, part.true)
        cause, cure = CAUSES[_kind(run)]
        yield finding(
            part,
            subject="learning_rate",
            title=f"Learning rate is shown as {a}, the compiled step uses {b}",
            message=(
                f"optimizer.learning_rate shows {a}, but inside the compiled step the rate was "
                f"{b}, {steps_in_words(part.first_step, part.last_step)}. {cause}"
            ),
            suggestion=cure,
            names=(DECLARED, APPLIED),
            because="float32 rounding of a schedule",
        )

    def _told_against_effective(self, run: RunView) -> Iterator[Finding]:
        if _has_half_precision_weights(run):
            return  # updates below their rounding are lost: the weights move in jumps
        told = APPLIED if run.has(APPLIED) else DECLARED
        rows = run.rows(told, EFFECTIVE)
        tolerance = self.shadow_tolerance * np.maximum(np.abs(rows[told]), np.abs(rows[EFFECTIVE]))
        part = parting(rows, rows[told], rows[EFFECTIVE], tolerance, patience=self.shadow_patience)
        if part is None:
            return
        a, b = two_numbers(part.shown, part.true)
        yield finding(
            part,
            subject="effective learning rate",
            title=f"Weights move as if the learning rate were {b}, not {a}",
            message=(
                f"The compiled step was told a learning rate of {a}, but the weights moved as the "
                f"same optimizer moves them at {b}, "
                f"{steps_in_words(part.first_step, part.last_step)}. Something rescales the "
                "gradients or the update: a custom train_step, a wrapper, or a second optimizer."
            ),
            suggestion="Look for a factor on gradients or updates in train_step or the optimizer.",
            names=(told, EFFECTIVE),
            because="the shadow optimizer's own error",
            severity=Severity.WARNING,
        )

    def _nothing_moves(self, run: RunView) -> Iterator[Finding]:
        if run.totals(MOVED).max != 0.0 or len(run.audits("epoch")) < self.still_epochs:
            return
        rows = run.rows(APPLIED, MOVED, PULL)
        pulled = (rows[APPLIED] > 0) & (rows[PULL] > 0) & np.isfinite(rows[PULL])
        if pulled.sum() < self.still_steps or not len(rows.new):
            return
        rate, gradient = float(rows[APPLIED][pulled][-1]), float(rows[PULL][pulled][-1])
        first, last = int(rows.steps[pulled][0]), int(rows.steps[pulled][-1])
        cause, cure = _why_still(half=_has_half_precision_weights(run))
        yield Finding(
            subject="effective learning rate",
            title=f"The learning rate is {number(rate)}, yet no weight moves",
            message=(
                f"The compiled step was told a learning rate of {number(rate)} and a gradient of "
                f"norm {number(gradient)} over the sampled weights, yet none of them moved at all, "
                f"{steps_in_words(first, last)}. {cause}"
            ),
            witnesses=(
                Witness(APPLIED, rate),
                Witness(MOVED, 0.0),
                Witness(PULL, gradient),
            ),
            suggestion=cure,
            first_step=first,
            last_step=last,
            count=int(pulled.sum()),
            severity=Severity.WARNING,
            certainty="The bits of the sampled weights are the same before and after each update.",
        )

    def _ignored_attributes(self, run: RunView) -> Iterator[Finding]:
        if not (run.has_audit("optimizer") and run.has(APPLIED)):
            return
        audit, new = run.audit("optimizer"), run.rows(APPLIED).new
        if not len(new):
            return
        used = float(new[APPLIED][-1])
        for row in maps(audit.facts, "stray"):
            value, name = real(row, "value"), text(row, "attribute")
            is_rate = row.get("meant") == "learning_rate"
            if value is None or name is None or not is_rate:
                continue
            if relative_gap(value, used) <= self.rounding:
                continue
            yield Finding(
                subject=f"optimizer.{name}",
                title=f"optimizer.{name} = {number(value)} is ignored by Keras",
                message=(
                    f"optimizer.{name} was set to {number(value)}, which Keras accepts and never "
                    f"reads. The compiled step uses a learning rate of {number(used)}."
                ),
                witnesses=(Witness(f"optimizer.{name}", value), Witness(APPLIED, used)),
                suggestion=f"Write optimizer.learning_rate = {number(value)}.",
                first_step=min(audit.step, int(new.steps[-1])),
                last_step=int(new.steps[-1]),
                count=len(new),
                severity=Severity.WARNING,
                certainty="A fresh optimizer of this class has no such attribute.",
            )


def nearest_in_time(rows: Rows, every: Rows) -> Floats:
    """The applied rate nearest to the declared one: of the step, of the one before or after.

    A callback may change the rate after the host read it for the step. That is no contradiction.
    """
    declared, steps = rows[DECLARED], every.steps
    nearest = rows[APPLIED].copy()
    for step in (rows.steps - 1, rows.steps + 1):
        at = np.minimum(np.searchsorted(steps, step), len(steps) - 1)
        other = np.where(steps[at] == step, every[APPLIED][at], np.nan)
        with np.errstate(invalid="ignore"):  # infinite rates; parting leaves them out
            nearer = np.abs(other - declared) < np.abs(nearest - declared)
        nearest = np.where(nearer, other, nearest)
    return nearest


def _why_still(*, half: bool) -> tuple[str, str]:
    """The likely cause, and what to change."""
    if half:
        return (
            "The weights are in half precision: an update below their rounding is lost, and in "
            "bfloat16 Adam's beta_2 of 0.999 becomes 1, which makes every update 0.",
            "Keep the weights in float32 with the policy mixed_bfloat16 (or mixed_float16).",
        )
    return (
        "The update computes 0 or is put back: an optimizer or a constraint of your own, or an "
        "update below the rounding of the weights.",
        "Look at update_step of the optimizer and at constraints, or raise the learning rate.",
    )


def _has_half_precision_weights(run: RunView) -> bool:
    layers = maps(run.audit("model").facts, "layers") if run.has_audit("model") else []
    return any(layer.get("dtype") in HALF for layer in layers)


def _kind(run: RunView) -> str:
    if not run.has_audit("optimizer"):
        return "number"
    kind = text(run.audit("optimizer").facts, "learning_rate_kind")
    return kind if kind in CAUSES else "number"
