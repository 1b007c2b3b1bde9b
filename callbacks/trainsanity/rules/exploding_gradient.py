from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import finding, not_measured, number, parting, steps_in_words
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity

NORM = "gradient/norm"


@dataclass(frozen=True)
class ExplodingGradient(Rule):
    """Gradients have become far larger than they were.

    Compares: the norm of all gradients now with the median of this run's first steps.

    Why: a few such steps undo thousands; the next stop is NaN.

    Try: clip gradients (global_clipnorm=1.0), lower the learning rate, warm it up.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
    networks" (2013); the factor is our own judgement.
    """

    id = "exploding-gradient"
    severity = Severity.ADVICE
    heuristic = True
    needs = (NORM,)

    factor: float = 1000.0  # times the median of the first steps
    first_steps: int = 100  # that make the median
    patience: int = 5  # steps in a row

    @staticmethod
    def fires_on() -> RunHistory:
        return history(gradient__norm=[1.0] * 150 + [5e3] * 10)

    @staticmethod
    def quiet_on() -> RunHistory:
        """Large at first, as losses are, and one bad batch later."""
        return history(gradient__norm=[900.0] * 5 + [1.0] * 150 + [5e3] + [1.0] * 20)

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(NORM):
            raise not_measured(run, NORM)
        overview = run.overview(NORM)
        early = np.cumsum(overview.count) - overview.count < self.first_steps
        finite = overview.mean[early & np.isfinite(overview.mean)]
        usual = float(np.median(finite)) if len(finite) else 0.0
        if run.totals(NORM).count <= self.first_steps or usual <= 0:
            raise NotTestable(f"needs more than {self.first_steps} steps with gradients")
        rows = run.rows(NORM)
        behind = rows.steps > overview.first_step[0] + self.first_steps
        # Equal within the bound, so that a step within it ends a streak.
        shown = np.minimum(rows[NORM], self.factor * usual)
        part = parting(rows, shown, rows[NORM], 0.0, patience=self.patience, where=behind)
        if part is None:
            return
        yield finding(
            part,
            subject="all gradients",
            title=f"Gradients are {number(part.true / usual, 2)} times what they were",
            message=(
                f"The norm of all gradients is {number(part.true)}, "
                f"{steps_in_words(part.first_step, part.last_step)}; the median of the first "
                f"{self.first_steps} steps was {number(usual)}."
            ),
            suggestion="Set global_clipnorm, or lower the learning rate.",
            names=(f"{self.factor:g} times the median of the first steps", NORM),
            certainty=f"Up to {self.factor:g} times is allowed; a threshold, not a contradiction.",
        )
