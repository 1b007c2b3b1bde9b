"""The training loss is where it was in the first epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainsanity.rules.comparison import merged, number, share, two_numbers
from trainsanity.rules.epoch_losses import EpochLoss, epoch_losses
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness


@dataclass(frozen=True)
class LossNotDecreasing(Rule):
    """The model does not learn: its loss does not fall below that of the first epoch.

    Compares: the training loss of the last epochs with that of the first.

    Why: a loss that stands still from the beginning means that nothing reaches the weights, or that
    the learning rate is far off.

    Try: overfit one batch first; then try learning rates a factor of ten up and down.

    Source: LossNotDecreasing of Amazon SageMaker Debugger. It compares with the first epoch only,
    so a run that has converged, or warms up for an epoch or two, is left in peace.
    """

    id = "loss-not-decreasing"
    severity = Severity.ADVICE
    needs = ("audit:epoch",)
    heuristic = True

    patience: int = 5  # epochs in a row
    progress: float = 0.01  # of the first epoch's loss that should be gone
    learnt: float = 1e-3  # a first loss this small has little left to learn

    @staticmethod
    def fires_on() -> RunHistory:
        return _example([2.30, 2.31, 2.30, 2.30, 2.31, 2.30])

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example([2.30, 2.29, 2.20, 2.10, 2.20, 2.25])

    def check(self, run: RunView) -> Iterable[Finding]:
        losses = epoch_losses(run)
        if len(losses) <= self.patience:
            raise NotTestable(f"fewer than {self.patience + 1} epochs have ended")
        first = losses[0]
        if abs(first.loss) < self.learnt:
            raise NotTestable("the loss was next to 0 from the first epoch on")
        ceiling = first.loss - self.progress * abs(first.loss)
        return merged(
            self._finding(first, losses[i])
            for i in range(self.patience, len(losses))
            if losses[i].is_new
            and all(each.loss > ceiling for each in losses[i - self.patience + 1 : i + 1])
        )

    def _finding(self, first: EpochLoss, now: EpochLoss) -> Finding:
        left, right = two_numbers(now.loss, first.loss)
        return Finding(
            subject="loss",
            title="The loss does not fall",
            message=f"After epoch {number(now.number)} the training loss is {left}; after the "
            f"first epoch it was {right}.",
            witnesses=(
                Witness(f"loss of epoch {now.number}", now.loss),
                Witness(f"loss of epoch {first.number}", first.loss),
            ),
            suggestion="See whether one batch can be learnt by heart. If not, look at frozen "
            "layers, the labels and the last activation; if so, change the learning rate tenfold.",
            first_step=first.step,
            last_step=now.step,
            certainty=f"{self.patience} epochs in a row less than {share(self.progress)} below the "
            "first.",
        )


def _example(losses: list[float]) -> RunHistory:
    epochs = [
        ("epoch", 10 * (i + 1), {"epoch": i, "reported": {"loss": loss}})
        for i, loss in enumerate(losses)
    ]
    return history(audits=epochs)
