from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import merged, real, share, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.rules.unit_audit import Row, lasting
from trainsanity.wire import Audit


@dataclass(frozen=True)
class SaturatedUnits(Rule):
    """Nearly all outputs of a hidden layer lie at the ends of its activation.

    Compares: the outputs of a hidden tanh or sigmoid layer with the ends of the activation's
    range, on the captured sample, at the end of two epochs in a row.

    Why: there the activation is flat, gradients are nearly 0, and the layer passes on a few
    bits.

    Try: smaller initial weights, normalized inputs, a lower learning rate, or another
    activation.

    Source: Glorot and Bengio (2010), section 3; the share is our own judgement.
    """

    id = "saturated-units"
    severity = Severity.ADVICE
    heuristic = True
    needs = ("audit:units",)

    saturated_share: float = 0.8  # of the outputs
    positions: int = 100  # looked at, at least

    @staticmethod
    def fires_on() -> RunHistory:
        return history(audits=_twice(_LAYER | {"saturated": 0.95}))

    @staticmethod
    def quiet_on() -> RunHistory:
        """A confident output layer is what one wants."""
        return history(audits=_twice(_LAYER | {"saturated": 0.95, "output": True}))

    def check(self, run: RunView) -> list[Finding]:
        return merged(self._finding(audit, row) for audit, row in lasting(run, self._is_bad))

    def _is_bad(self, row: Row) -> bool:
        enough = (whole(row, "positions") or 0) >= self.positions
        return enough and (real(row, "saturated") or 0.0) > self.saturated_share

    def _finding(self, audit: Audit, row: Row) -> Finding:
        name, part = text(row, "name") or "?", real(row, "saturated") or 0.0
        return Finding(
            subject=name,
            title=f"{name}: {share(part)} of the outputs are saturated",
            message=(
                f"{share(part)} of the outputs of {name} ({text(row, 'activation') or '?'}) lie "
                f"within 1 % of an end of its range, over {whole(row, 'positions') or 0:,} "
                "positions, at the end of two epochs in a row. Its gradient is nearly 0 there."
            ),
            witnesses=(
                Witness("allowed share", self.saturated_share),
                Witness("saturated share", part),
            ),
            suggestion="Normalize the inputs of this layer, or start with smaller weights.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=f"Up to {share(self.saturated_share)} is allowed.",
        )


def _twice(row: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    return [("units", step, {"layers": [row]}) for step in (50, 100)]


_LAYER = {
    "name": "dense",
    "class": "Dense",
    "activation": "tanh",
    "units": 64,
    "saturated": 0.1,
    "positions": 128,
    "output": False,
}
