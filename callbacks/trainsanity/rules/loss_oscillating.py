"""The training loss jumps up and down from epoch to epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import merged, share, two_numbers
from trainsanity.rules.epoch_losses import EpochLoss, epoch_losses
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness


@dataclass(frozen=True)
class LossOscillating(Rule):
    """The training loss alternates between two levels from epoch to epoch.

    Compares: the loss of the epochs at which it went up with that of the epochs at which it went
    down, in a window of epochs.

    Why: steps that overshoot the valley go from one slope to the other and back; the model gets no
    further.

    Try: a smaller learning rate, a larger batch, or gradient clipping.

    Source: DeepDiagnosis (ICSE 2022), "oscillating loss". In a series without trend every change of
    twelve alternates once in 90 (zigzag permutations); the height of the jumps excludes noise.
    """

    id = "loss-oscillating"
    severity = Severity.ADVICE
    needs = ("audit:epoch",)
    heuristic = True

    window: int = 12  # epochs, each change the other way than the one before
    height: float = 0.2  # of the mean loss: smallest jump

    @staticmethod
    def fires_on() -> RunHistory:
        return _example([1.0, 1.6] * 6)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example([1.0, 1.05] * 6)

    def check(self, run: RunView) -> Iterable[Finding]:
        losses = epoch_losses(run)
        if len(losses) < self.window:
            raise NotTestable(f"fewer than {self.window} epochs have ended")
        return merged(
            found
            for i in range(self.window, len(losses) + 1)
            if losses[i - 1].is_new
            for found in self._of(losses[i - self.window : i])
        )

    def _of(self, epochs: list[EpochLoss]) -> Iterable[Finding]:
        losses = np.array([epoch.loss for epoch in epochs])
        jumps = np.diff(losses)
        alternates = bool((jumps[1:] * jumps[:-1] < 0).all())
        if not alternates or np.abs(jumps).min() < self.height * np.abs(losses).mean():
            return
        ups, downs = losses[1:][jumps > 0], losses[1:][jumps < 0]
        high, low = float(ups.mean()), float(downs.mean())
        left, right = two_numbers(high, low)
        yield Finding(
            subject="loss",
            title="The loss jumps up and down",
            message=f"In each of the last {self.window} epochs the training loss changed "
            f"direction, between {left} and {right} on average.",
            witnesses=(
                Witness("mean loss after going up", high),
                Witness("mean loss after going down", low),
            ),
            suggestion="Lower the learning rate by a factor of three to ten; if batches are small, "
            "enlarge them.",
            first_step=epochs[0].step,
            last_step=epochs[-1].step,
            count=len(epochs),
            certainty=f"Every jump exceeds {share(self.height)} of the mean loss.",
        )


def _example(losses: list[float]) -> RunHistory:
    epochs = [
        ("epoch", 10 * (i + 1), {"epoch": i, "reported": {"loss": loss}})
        for i, loss in enumerate(losses)
    ]
    return history(audits=epochs)
