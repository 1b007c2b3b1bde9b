"""The loss that is differentiated is not the sum of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainsanity.rules.comparison import (
    finding,
    not_measured,
    number,
    parting,
    two_numbers,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.shown_metrics import loss_dtype, loss_tolerance

PARTS = ("loss/differentiated", "loss/batch", "loss/added")


@dataclass(frozen=True)
class LossDecompositionMismatch(Rule):
    """What is differentiated is not the compiled losses plus added losses and regularizers.

    Compares: the value that `compute_loss` returned for a batch with the sum of the compiled losses
    (recomputed, with loss weights, sample weights and masks), added losses and regularizers.

    Why: a part that is missing or counted twice trains another model than the one written down.

    Try: look for `add_loss` in a layer that is called twice, loss weights that match no output, and
    losses that return one number for many samples.

    Source: keras/src/trainers/trainer.py, `compute_loss`. The tolerance is the rounding of one
    batch, in what the loss is computed in. A model with a `compute_loss` of its own is not
    testable: it may leave a part out.
    """

    id = "loss-decomposition-mismatch"
    severity = Severity.CRITICAL
    needs = ("loss/differentiated", "loss/batch", "loss/added")

    patience: int = 3  # batches in a row

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(differentiated=2.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(differentiated=2.25)

    def check(self, run: RunView) -> Iterable[Finding]:
        if run.has_audit("compile") and run.audit("compile").facts.get("custom_compute_loss"):
            raise NotTestable("the model has a compute_loss of its own")
        if not run.has(*PARTS):
            raise not_measured(run, "loss/recomputed", *PARTS)
        rows = run.rows(*PARTS)
        used, total, added = (rows[name] for name in PARTS)
        tolerance = loss_tolerance(run, used, total, added)
        part = parting(rows, used, total, tolerance, patience=self.patience)
        if part is None:
            return
        extra = float(added[rows.steps == part.last_step][-1])
        left, right = two_numbers(part.shown, part.true)
        yield finding(
            part,
            subject="loss",
            title="The loss is not the sum of its parts",
            message=f"The loss that is differentiated is {left}. Its parts sum to {right}, of "
            f"which {number(extra)} are added losses and regularizers. It has been so since step "
            f"{part.first_step:,}." + _guess(part.true - part.shown, extra, part.tolerance),
            suggestion="Check loss_weights, add_loss calls and regularizers against what "
            "`compute_loss` returns.",
            names=("loss/differentiated", "sum of its parts"),
            because=f"{loss_dtype(run)} rounding of one batch",
            also=(Witness("loss/added", extra),),
        )


def _guess(missing: float, added: float, tolerance: float) -> str:
    """What the gap equals."""
    if added and abs(missing - added) <= tolerance:
        return " The gap is just the added losses: they are not trained."
    if added and abs(missing + added) <= tolerance:
        return " The gap is just the added losses: they are counted twice."
    return ""


def _example(*, differentiated: float) -> RunHistory:
    return history(
        loss__differentiated=[differentiated] * 4,
        loss__batch=[2.25] * 4,
        loss__added=[0.25] * 4,
    )
