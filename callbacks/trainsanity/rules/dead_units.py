from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import merged, share, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.rules.unit_audit import Row, lasting
from trainsanity.wire import Audit


@dataclass(frozen=True)
class DeadUnits(Rule):
    """Most units of a layer are 0 for every sample.

    Compares: the units of a hidden layer with those that were above 0 for any position of the
    captured sample, at the end of two epochs in a row.

    Why: a relu unit that is never above 0 gets no gradient and does not come back.

    Try: a lower learning rate, leaky_relu or gelu, He initialization, normalized inputs.

    Source: Lu et al., "Dying ReLU and initialization" (2019); the share is our own judgement.
    """

    id = "dead-units"
    severity = Severity.ADVICE
    heuristic = True
    needs = ("audit:units",)

    dead_share: float = 0.5  # of the layer's units
    units: int = 8  # in the layer, at least
    positions: int = 100  # looked at, at least: a rare feature is not a dead unit

    @staticmethod
    def fires_on() -> RunHistory:
        return history(audits=_twice(_LAYER | {"dead": 60}))

    @staticmethod
    def quiet_on() -> RunHistory:
        """A fifth is dead, as is common."""
        return history(audits=_twice(_LAYER | {"dead": 12}))

    def check(self, run: RunView) -> list[Finding]:
        return merged(self._finding(audit, row) for audit, row in lasting(run, self._is_bad))

    def _is_bad(self, row: Row) -> bool:
        units, dead = whole(row, "units") or 0, whole(row, "dead") or 0
        enough = units >= self.units and (whole(row, "positions") or 0) >= self.positions
        return enough and dead > self.dead_share * units

    def _finding(self, audit: Audit, row: Row) -> Finding:
        name, units, dead = (
            text(row, "name") or "?",
            whole(row, "units") or 1,
            whole(row, "dead") or 0,
        )
        return Finding(
            subject=name,
            title=f"{name}: {dead:,} of {units:,} units are dead",
            message=(
                f"{dead:,} of the {units:,} units of {name} ({text(row, 'activation') or 'relu'}) "
                f"are 0 for all {whole(row, 'positions') or 0:,} positions looked at, at the end "
                "of two epochs in a row. They get no gradient."
            ),
            witnesses=(
                Witness("units", units, "units"),
                Witness("units above 0 anywhere", units - dead, "units"),
            ),
            suggestion="Lower the learning rate, or use leaky_relu or gelu.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=f"Up to {share(self.dead_share)} is allowed.",
        )


def _twice(row: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    return [("units", step, {"layers": [row]}) for step in (50, 100)]


_LAYER = {
    "name": "dense",
    "class": "Dense",
    "activation": "relu",
    "units": 64,
    "dead": 0,
    "positions": 128,
    "output": False,
}
