"""The validation loss rises while the training loss goes on falling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import finite_rows, not_measured, parting, share, two_numbers
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness

LOSSES = ("loss/reported", "val_loss/reported")


@dataclass(frozen=True)
class Overfitting(Rule):
    """The model goes on learning the training data by heart.

    Compares: the validation loss with its best value so far, and the training loss now with that at
    the time of the best.

    Why: from there on the model gets better at the data it has seen and worse at all other.

    Try: stop at the best epoch (`EarlyStopping(restore_best_weights=True)`), regularize, augment.

    Source: Prechelt 1998, "Early stopping, but when?", generalization loss; the same heuristic as
    Overfit of Amazon SageMaker Debugger. Thresholds are our own judgement.
    """

    id = "overfitting"
    severity = Severity.ADVICE
    needs = ("loss/reported", "val_loss/reported")
    heuristic = True

    margin: float = 0.1  # of the best validation loss
    patience: int = 5  # validations in a row

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(val=[1.0, 0.8, 0.9, 0.95, 1.0, 1.1, 1.2])

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(val=[1.0, 0.8, 0.82, 0.81, 0.8, 0.79, 0.8])

    def check(self, run: RunView) -> Iterable[Finding]:
        if not run.has(*LOSSES):
            raise not_measured(run, *LOSSES)
        rows = finite_rows(run.rows(*LOSSES))
        if not len(rows):
            return
        training, validation = rows[LOSSES[0]], rows[LOSSES[1]]
        best = np.minimum.accumulate(validation)
        at_best = np.maximum.accumulate(np.where(validation == best, np.arange(len(rows)), 0))
        still_falls = training < training[at_best]
        allowed = np.where(still_falls, self.margin * np.abs(best), np.inf)
        part = parting(rows, validation, best, allowed, patience=self.patience)
        if part is None:
            return
        now = int(np.searchsorted(rows.steps, part.last_step))
        left, right = two_numbers(part.shown, part.true)
        before, after = two_numbers(float(training[at_best[now]]), float(training[now]))
        yield Finding(
            subject="loss",
            title="Validation loss rises while training loss falls",
            message=f"The validation loss is {left}; its best, at step "
            f"{int(rows.steps[at_best[now]]):,}, was {right}. Since then the training loss fell "
            f"from {before} to {after}.",
            witnesses=(
                Witness("val_loss/reported", part.shown),
                Witness("best val_loss", part.true),
                Witness("loss/reported", float(training[now])),
            ),
            suggestion="Keep the weights of the best epoch: EarlyStopping(monitor='val_loss', "
            "restore_best_weights=True). More data, augmentation or dropout move that epoch on.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            certainty=f"More than {share(self.margin)} above the best in at least {self.patience} "
            "validations in a row.",
        )


def _example(*, val: list[float]) -> RunHistory:
    return history(
        loss__reported=[0.9 * 0.8**i for i in range(len(val))],
        val_loss__reported=val,
    )
