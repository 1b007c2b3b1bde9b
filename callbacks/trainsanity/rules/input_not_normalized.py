"""Inputs far from the scale for which layers are initialized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    finite_rows,
    name_of,
    not_measured,
    number,
    parting,
    trailing_mean,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness


@dataclass(frozen=True)
class InputNotNormalized(Rule):
    """The inputs are far larger or smaller than the first layer expects.

    Compares: the root mean square of what reaches the first layer with weights with 1, for which
    the usual initializers keep the scale of signals.

    Why: inputs of 0..255 make the first activations a hundred times too large, so units saturate
    or die and the learning rate that suits one layer does not suit the next.

    Try: `keras.layers.Rescaling(1 / 255)` for images, `Normalization` with `adapt` for tables.

    Source: LeCun et al. 1998, "Efficient backprop", section 4.3; NotNormalizedData of Amazon
    SageMaker Debugger. Thresholds are our own judgement: one order of magnitude up, two down.
    """

    id = "input-not-normalized"
    severity = Severity.ADVICE
    needs = ("inputs*/mean", "inputs*/std")
    heuristic = True

    window: int = 20  # batches
    largest: float = 10.0  # root mean square
    smallest: float = 0.01  # root mean square

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(mean=128.0, std=70.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(mean=0.5, std=0.28)

    def check(self, run: RunView) -> Iterable[Finding]:
        inputs = [
            q for q in run.quantities("mean", "std") if q == "inputs" or q.startswith("inputs:")
        ]
        if not inputs:
            raise not_measured(run, "inputs/mean")
        for quantity in inputs:
            yield from self._of(run, quantity)

    def _of(self, run: RunView, quantity: str) -> Iterable[Finding]:
        names = f"{quantity}/mean", f"{quantity}/std"
        rows = finite_rows(run.rows(*names))
        size = np.sqrt(trailing_mean(rows[names[0]] ** 2 + rows[names[1]] ** 2, self.window))
        within = np.clip(size, self.smallest, self.largest)
        part = parting(rows, size, within, 0.0, where=size > 0)
        if part is None:
            return
        at = int(np.searchsorted(rows.steps, part.last_step))
        name = f" `{name_of(quantity)}`" if name_of(quantity) else ""
        yield Finding(
            subject=f"input {name_of(quantity)}".strip(),
            title="Inputs are not scaled to about 1",
            message=f"The values of the input{name} have a root mean square of "
            f"{number(part.shown)} where they reach the first layer with weights; initializers "
            f"expect about 1. Their mean is {number(float(rows[names[0]][at]))}, their standard "
            f"deviation {number(float(rows[names[1]][at]))}.",
            witnesses=(
                Witness("root mean square of the inputs", part.shown),
                Witness("what initializers expect", 1.0),
            ),
            suggestion="Put keras.layers.Rescaling(1 / 255) or a Normalization layer in front, or "
            "scale the data.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            certainty=f"Mean over {self.window} batches; {number(self.smallest)} to "
            f"{number(self.largest)} is allowed.",
        )


def _example(*, mean: float, std: float) -> RunHistory:
    return history(inputs__mean=[mean] * 25, inputs__std=[std] * 25)
