from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    maps,
    measured,
    merged,
    number,
    real,
    relative_gap,
    share,
    text,
    two_numbers,
    whole,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit

# No loss of a probability can be higher: -log(keras.config.epsilon()).
CUT_OFF = 16.118


@dataclass(frozen=True)
class LossPrecisionLost(Rule):
    """A crossentropy of probabilities is cut off where its logits say more.

    Compares: the crossentropy that is compiled, on the probabilities of the captured rows, with the
    same in float64 from the numbers before softmax or sigmoid.

    Why: a probability is cut off at 1e-7, so a loss never rises above 16.1, and the samples that
    are most wrong have no gradient: they are never learnt.

    Try: leave softmax or sigmoid out of the model and compile with from_logits=True; or let
    nothing come between the activation and the loss, then Keras on TensorFlow finds the logits.

    Source: TensorFlow issue 32869; keras/src/backend/*/nn.py clips by keras.config.epsilon().
    """

    id = "loss-precision-lost"
    severity = Severity.WARNING
    needs = ("audit:logits",)

    # Share of the loss. Probabilities in float32 alone err by 1e-7 of themselves; a cut-off at 1e-7
    # of one sample in a thousand, 10 too low, moves a loss of 1 by as much.
    material: float = 0.01

    @staticmethod
    def fires_on() -> RunHistory:
        """Logits 60 apart, and a label that is the unlikely one."""
        return history(audits=[("logits", 40, {"outputs": [_OUTPUT | {"from_logits": 7.9}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Also a model that is nearly always right: no loss of a probability is below 1e-7."""
        right = {"shown": 1e-7, "from_logits": 1e-12, "from_logits_furthest": 1e-12}
        return history(audits=[("logits", 40, {"outputs": [_OUTPUT, _OUTPUT | right]})])

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            self._finding(audit, row, shown, true)
            for audit in measured(run, "logits")
            for row in maps(audit.facts, "outputs")
            if (shown := real(row, "shown")) is not None
            and (true := real(row, "from_logits")) is not None
            and true - shown > self.material * true
            and (real(row, "from_logits_furthest") or 0.0) > CUT_OFF
        )

    def _finding(self, audit: Audit, row: Mapping[str, Any], shown: float, true: float) -> Finding:
        layer, loss = text(row, "activation") or "the activation", text(row, "loss") or "loss"
        left, right = two_numbers(shown, true)
        worst = real(row, "shown_furthest"), real(row, "from_logits_furthest")
        sample = (
            f" The sample that is furthest off counts {number(worst[0])} instead of "
            f"{number(worst[1])}."
            if worst[0] is not None and worst[1] is not None
            else ""
        )
        gap = float(relative_gap(shown, true))
        return Finding(
            subject=text(row, "name") or "loss",
            title=f"{loss} is {left}, from the logits it is {right}",
            message=f"On {whole(row, 'losses') or 0:,} samples {loss} of the probabilities is "
            f"{left}; from the numbers before the activation of {layer}, in float64, it is "
            f"{right}.{sample} Probabilities are cut off at 1e-7, and where they are, no gradient "
            "flows.",
            witnesses=(Witness("loss of the probabilities", shown), Witness("from logits", true)),
            suggestion=f"Leave the activation out of {layer}, and compile with from_logits=True.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=f"The gap is {share(gap)} of the loss; {share(self.material)} are allowed.",
        )


_OUTPUT = {
    "name": "",
    "loss": "SparseCategoricalCrossentropy",
    "activation": "softmax",
    "losses": 8,
    "shown": 2.015,
    "from_logits": 2.015,
    "shown_furthest": 16.12,
    "from_logits_furthest": 63.2,
}
