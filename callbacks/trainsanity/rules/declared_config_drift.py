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
    text,
    two_numbers,
)
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit

# kind of item: (name of the declaring witness, likely cause)
KINDS = {
    "expected": (
        "expected by you",
        "It was set later, or an argument was dropped on the way, for example by clone_model or "
        "a get_config that leaves it out.",
    ),
    "slot": (
        "optimizer's argument",
        "The optimizer filled its slot with another value than its own argument says.",
    ),
    "default": (
        "default of the class",
        "Given by name, the optimizer was built with another default than the class itself has.",
    ),
}


@dataclass(frozen=True)
class DeclaredConfigDrift(Rule):
    """An object holds another value than the one declared for it.

    Compares: what was declared (with `Expect`, as an argument of the optimizer, or as the
    default of its class) and what the built object holds when training begins: numbers, texts,
    or whole arrays.

    Why: an initial matrix that was dropped or a default that changed with the spelling trains
    without complaint, and worse.

    Try: set the value after building, and look where the argument is lost (get_config,
    clone_model).

    Source: TensorFlow issues 37229 (Adagrad by name) and 28501 (Embedding(weights=...)).
    """

    id = "declared-config-drift"
    severity = Severity.CRITICAL
    needs = ("audit:declared",)

    # Relative: a Python float stored as float16 errs by 2^-11 = 4.9e-4, as float32 by 6e-8;
    # twice the worst. A value that differs by less is the same value, stored.
    rounding: float = 1e-3

    @staticmethod
    def fires_on() -> RunHistory:
        """Adagrad whose accumulator begins at 0, where its argument says 0.1."""
        return history(audits=[("declared", 1, {"items": [_ADAGRAD | {"held": 0.0}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """The same, held as float32."""
        return history(audits=[("declared", 1, {"items": [_ADAGRAD | {"held": 0.10000000149}]})])

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            self._finding(audit, item)
            for audit in measured(run, "declared")
            for item in maps(audit.facts, "items")
            if self._drifted(item)
        )

    def _drifted(self, item: Mapping[str, Any]) -> bool:
        difference = Difference.of(item)
        if difference is not None:
            return difference.largest > self.rounding * difference.scale
        declared, held = real(item, "declared"), real(item, "held")
        if declared is not None and held is not None:
            return bool(relative_gap(declared, held) > self.rounding)
        both = item.get("declared"), item.get("held")
        return None not in both and both[0] != both[1]

    def _finding(self, audit: Audit, item: Mapping[str, Any]) -> Finding:
        subject, name = text(item, "subject") or "model", text(item, "name") or "value"
        kind = text(item, "kind") or "expected"
        who, cause = KINDS.get(kind, KINDS["expected"])
        declared, held = _in_words(item)
        difference = Difference.of(item)
        gap = f" They differ by up to {number(difference.largest)}." if difference else ""
        return Finding(
            subject=f"{subject}: {name}",
            title=f"{subject} holds {name} = {held}, declared {declared}",
            message=(
                f"{name} of {subject} was declared as {declared} ({who}), but when training began "
                f"it held {held}.{gap} {cause}"
            ),
            witnesses=(
                Witness(f"{name}, {who}", _value(item, "declared")),
                Witness(f"{name} held", _value(item, "held")),
            ),
            suggestion=f"Set {name} after building, and check where the declared value is lost.",
            first_step=audit.step,
            last_step=audit.step,
            severity=Severity.WARNING if kind == "default" else None,
            certainty=f"Up to {self.rounding:g} of the value would be rounding in storage.",
        )


def _in_words(item: Mapping[str, Any]) -> tuple[str, str]:
    declared, held = real(item, "declared"), real(item, "held")
    if declared is not None and held is not None:
        return two_numbers(declared, held)
    return _short(item.get("declared")), _short(item.get("held"))


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) <= 24 else shown[:21] + "..."


def _value(item: Mapping[str, Any], key: str) -> float | str:
    value = real(item, key)
    return value if value is not None else str(item.get(key))


_ADAGRAD = {
    "subject": "optimizer Adagrad",
    "name": "initial_accumulator_value",
    "kind": "slot",
    "declared": 0.1,
}
