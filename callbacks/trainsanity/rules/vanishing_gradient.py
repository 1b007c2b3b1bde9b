from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import finding, measured, number, parting, steps_in_words
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.variables import Variable, variables
from trainsanity.wire import Audit

NORM = "gradient/norm"


@dataclass(frozen=True)
class VanishingGradient(Rule):
    """Gradients are so small that training stands still.

    Compares: the norm of all gradients with the smallest that still moves weights, while the
    loss is far from its best; and the gradient of the first layer with that of the last.

    Why: the first layers keep their random weights; more epochs do not help.

    Try: relu or gelu instead of sigmoid, normalization or residual connections, He or Glorot
    initialization.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks" (2010); the norm's threshold is that of Amazon SageMaker Debugger's
    VanishingGradient.
    """

    id = "vanishing-gradient"
    severity = Severity.ADVICE
    heuristic = True
    needs = (NORM,)

    smallest: float = 1e-7  # norm of all gradients
    patience: int = 100  # steps in a row, of which at least 20 were looked at
    solved: float = 0.01  # of the first loss: below it, small gradients are what one wants
    layer_ratio: float = 1e-6  # first layer's largest gradient by the last layer's
    layers: int = 5  # with gradients, at least; a shallow network does not vanish

    @staticmethod
    def fires_on() -> RunHistory:
        return history(gradient__norm=[1e-9] * 120, loss__reported=[2.3] * 120)

    @staticmethod
    def quiet_on() -> RunHistory:
        """Solved: nothing is left to learn."""
        return history(gradient__norm=[1e-9] * 120, loss__reported=[2.3] + [1e-6] * 119)

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(NORM) and not run.has_audit("weights"):
            raise NotTestable(f"the run carries no signal {NORM}")
        if run.has(NORM):
            yield from self._everywhere(run)
        if run.has_audit("weights"):
            for audit in measured(run, "weights")[-1:]:
                yield from self._by_depth(audit)

    def _everywhere(self, run: RunView) -> Iterator[Finding]:
        if self._is_solved(run):
            return
        rows = run.rows(NORM)
        floor = np.maximum(rows[NORM], self.smallest)
        part = parting(rows, floor, rows[NORM], 0.0, patience=self.patience)
        if part is None:
            return
        yield finding(
            part,
            subject="all gradients",
            title=f"The norm of all gradients is {number(part.true)}",
            message=(
                f"The gradients of all weights together have a norm of {number(part.true)}, below "
                f"{number(self.smallest)} {steps_in_words(part.first_step, part.last_step)}, and "
                "the loss is not near 0. Saturated activations or a constant output stop them."
            ),
            suggestion="Check the activations of the last layers and the scale of the inputs.",
            names=("smallest useful norm", NORM),
            certainty="A threshold, from this rule's source; not a contradiction.",
        )

    def _is_solved(self, run: RunView) -> bool:
        if not run.has("loss/reported"):
            return False
        loss = run.totals("loss/reported")
        return loss.last <= self.solved * abs(loss.first)

    def _by_depth(self, audit: Audit) -> Iterator[Finding]:
        found = [v for v in variables(audit.facts) if v.training and v.gradient_largest]
        layers = list(dict.fromkeys(v.layer for v in found))
        if len(layers) < self.layers:
            return
        first, last = (_largest(found, layer) for layer in (layers[0], layers[-1]))
        if first >= self.layer_ratio * last:
            return
        yield Finding(
            subject=layers[0],
            title=f"Gradients shrink by {number(last / first, 1)} on their way to {layers[0]}",
            message=(
                f"In the epoch up to step {audit.step:,} the largest gradient was {number(last)} "
                f"in {layers[-1]} and {number(first)} in {layers[0]}, {len(layers)} layers before."
            ),
            witnesses=(
                Witness(f"largest gradient in {layers[-1]}", last),
                Witness(f"largest gradient in {layers[0]}", first),
            ),
            suggestion="Add normalization or residual connections between them.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=f"A ratio down to {number(self.layer_ratio)} is allowed.",
        )


def _largest(found: list[Variable], layer: str) -> float:
    return max(v.gradient_largest or 0.0 for v in found if v.layer == layer)
