from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, real, text
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class StateResetMissing(Rule):
    """A layer keeps its state through a reset.

    Compares: the states of stateful layers right after an explicit reset with their initial
    values; and, where measured, outputs on one input before training and after the reset.

    Why: a sequence then begins with the memory of another one, and results depend on what was
    predicted before.

    Try: reset all inner layers in reset_state() of a wrapper.

    Source: TensorFlow issue 34055: reset_states did nothing for a bidirectional layer.
    """

    id = "state-reset-missing"
    severity = Severity.CRITICAL
    needs = ("audit:state_reset",)

    @staticmethod
    def fires_on() -> RunHistory:
        """A wrapper whose reset_state is empty."""
        return history(audits=[("state_reset", 40, {"layers": [_LAYER | {"after": 0.8}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        return history(audits=[("state_reset", 40, {"layers": [_LAYER]})])

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            _finding(audit, row)
            for audit in measured(run, "state_reset")
            for row in maps(audit.facts, "layers")
            if (real(row, "after") or 0.0) > 0.0
        )


def _finding(audit: Audit, row: Mapping[str, Any]) -> Finding:
    name, by = text(row, "name") or "?", text(row, "by") or "reset_state"
    before, after = real(row, "before"), real(row, "after") or 0.0
    untouched = before == after
    outputs = Difference.of(row, "outputs")
    effect = (
        f" The same input now gives outputs that differ by {number(outputs.largest)}."
        if outputs is not None and outputs.disagrees
        else ""
    )
    return Finding(
        subject=name,
        title=f"{name}: {by}() leaves the state {number(after)} away from its initial value",
        message=(
            f"After {by}() at step {audit.step:,}, a state of {name} "
            f"({text(row, 'class') or 'layer'}) differs from its initial value by up to "
            f"{number(after)}" + (", exactly as before the reset." if untouched else ".") + effect
        ),
        witnesses=(
            Witness("expected distance from the initial state", 0.0),
            Witness("distance after the reset", after),
        ),
        suggestion=f"Make reset_state() of {name} reset every state, those of inner layers too.",
        first_step=audit.step,
        last_step=audit.step,
        # A layer may draw a new initial state on purpose; then the reset did something.
        severity=None if untouched else Severity.WARNING,
        certainty="A reset assigns the initial values, so any difference counts.",
    )


_LAYER = {
    "name": "my_bidirectional",
    "class": "MyBidirectional",
    "by": "reset_state",
    "before": 0.8,
    "after": 0.0,
    "scale": 0.8,
    "elements": 64,
    "dtype": "float32",
}
