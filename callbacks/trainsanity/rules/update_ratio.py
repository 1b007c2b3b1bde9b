from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import finding, not_measured, number, parting, steps_in_words
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness

UPDATE, WEIGHTS = "update/sampled_norm", "weights/sampled_norm"


@dataclass(frozen=True)
class UpdateRatio(Rule):
    """Steps are far too large or too small for the weights.

    Compares: how far one step moves the sampled weights with the size of these weights.

    Why: above a tenth, each step rewrites the weights; below the rounding of float32, steps are
    lost in storing them.

    Try: change the learning rate by a factor of ten in the direction needed.

    Source: CS231n notes, "Neural Networks 3": about 1e-3 is healthy. The lower bound is the
    unit roundoff of float32, 2^-24.
    """

    id = "update-ratio"
    severity = Severity.ADVICE
    heuristic = True
    needs = (UPDATE, WEIGHTS)

    largest: float = 0.1  # update by weights, unitless
    smallest: float = 2.0**-24  # update by weights, unitless
    patience: int = 100  # steps in a row, of which at least 20 were looked at
    first_steps: int = 100  # left alone: warm-up, weights that begin at 0

    @staticmethod
    def fires_on() -> RunHistory:
        return history({UPDATE: [5.0] * 250, WEIGHTS: [10.0] * 250})

    @staticmethod
    def quiet_on() -> RunHistory:
        """Warm-up, then every second step waits for gradients to accumulate."""
        return history({UPDATE: [5.0] * 100 + [0.0, 0.01] * 100, WEIGHTS: [10.0] * 300})

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(UPDATE, WEIGHTS):
            raise not_measured(run, UPDATE, WEIGHTS)
        rows = run.rows(UPDATE, WEIGHTS)
        update, weights = rows[UPDATE], rows[WEIGHTS]
        begin = min(run.totals(UPDATE).first_step, run.totals(WEIGHTS).first_step)
        # A step that moves nothing is a step without an update, not a small one.
        usable = (update > 0) & (weights > 0) & (rows.steps >= begin + self.first_steps)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(usable, update / weights, np.nan)
        for bounded, bound, word in (
            (np.minimum(ratio, self.largest), self.largest, "large"),
            (np.maximum(ratio, self.smallest), self.smallest, "small"),
        ):
            part = parting(rows, bounded, ratio, 0.0, patience=self.patience)
            if part is None:
                continue
            yield finding(
                part,
                subject=f"{word} steps",
                title=f"A step moves weights by {number(part.true)} of their size: very {word}",
                message=(
                    f"One step moves the sampled weights by {number(part.true)} of their norm, "
                    f"{steps_in_words(part.first_step, part.last_step)}; about 0.001 is usual and "
                    f"{number(bound)} is the {'most' if word == 'large' else 'least'} that makes "
                    "sense."
                ),
                suggestion=(
                    "Lower the learning rate, or clip gradients."
                    if word == "large"
                    else "Raise the learning rate; keep weights in float32."
                ),
                names=("bound", "update by weights"),
                certainty="A threshold, from this rule's source; not a contradiction.",
                also=(
                    Witness(UPDATE, float(update[rows.steps == part.last_step][0])),
                    Witness(WEIGHTS, float(weights[rows.steps == part.last_step][0])),
                ),
            )
