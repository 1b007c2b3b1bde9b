from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, real, relative_gap, text
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit

KINDS = {
    "learning_rate": "the learning rate",
    "weights": "the weights",
    "stop": "the state of training",
    "save": "the saved file",
}


@dataclass(frozen=True)
class AnnouncedActionMismatch(Rule):
    """A callback says that it did something, and it did not.

    Compares: what the callback printed (a learning rate, best weights restored, a file saved)
    and the state of the model or disk right before and right after the callback's hook.

    Why: you wait for a reduction that never comes, or keep a model that was never restored.

    Try: compare learning rates as float32, since the optimizer stores them so.

    Source: TensorFlow issue 39462: ReduceLROnPlateau announced the same reduction for ever.
    """

    id = "announced-action-mismatch"
    severity = Severity.CRITICAL
    needs = ("audit:announced",)

    # Relative: printed with the six digits of Python's %g at least, and stored as float32.
    rounding: float = 1e-5

    @staticmethod
    def fires_on() -> RunHistory:
        """A reduction announced at the lowest rate, where nothing is left to reduce."""
        return history(audits=[("announced", 90, {"actions": [_REDUCTION | {"before": 1e-5}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        return history(audits=[("announced", 90, {"actions": [_REDUCTION | {"before": 1e-4}]})])

    def check(self, run: RunView) -> list[Finding]:
        found = (
            self._finding(audit, action)
            for audit in measured(run, "announced")
            for action in maps(audit.facts, "actions")
        )
        return merged(f for f in found if f is not None)

    def _finding(self, audit: Audit, action: Mapping[str, Any]) -> Finding | None:
        announced, before, after = (action.get(k) for k in ("announced", "before", "after"))
        by, what = (
            text(action, "by") or "A callback",
            KINDS.get(str(action.get("kind")), "the state"),
        )
        quote = f" It printed: {text(action, 'text')!r}." if text(action, "text") else ""
        if None not in (announced, after) and not self._same(announced, after):
            return Finding(
                subject=f"{by}: {what}",
                title=f"{by} announced {_word(announced)}, but {what} is {_word(after)}",
                message=(
                    f"At step {audit.step:,} {by} announced {_word(announced)} for {what}; right "
                    f"afterwards it was {_word(after)}.{quote}"
                ),
                witnesses=(
                    Witness("announced", _value(announced)),
                    Witness("after the hook", _value(after)),
                ),
                suggestion=f"Look at what {by} really changes, and on which object.",
                first_step=audit.step,
                last_step=audit.step,
                certainty=f"Up to {self.rounding:g} of the value would be rounding.",
            )
        if action.get("change") and None not in (before, after) and self._same(before, after):
            return Finding(
                subject=f"{by}: {what}",
                title=f"{by} announced a change, but {what} stayed at {_word(after)}",
                message=(
                    f"At step {audit.step:,} {by} announced a change of {what}; it was "
                    f"{_word(before)} before and {_word(after)} after.{quote} A comparison of a "
                    "Python number with a stored float32 never ends."
                ),
                witnesses=(
                    Witness("changes announced", 1, "changes"),
                    Witness("changes made", 0, "changes"),
                    Witness("before the hook", _value(before)),
                    Witness("after the hook", _value(after)),
                ),
                suggestion=f"Let {by} compare with float32 tolerance, and print only what it did.",
                first_step=audit.step,
                last_step=audit.step,
                severity=Severity.WARNING,
                certainty="Before and after are equal to float32 rounding.",
            )
        return None

    def _same(self, a: Any, b: Any) -> bool:
        left, right = real({"v": a}, "v"), real({"v": b}, "v")
        if left is None or right is None:
            return bool(a == b)
        return bool(relative_gap(left, right) <= self.rounding)


def _word(value: Any) -> str:
    as_number = real({"v": value}, "v")
    return str(value)[:24] if as_number is None else number(as_number, digits=6)


def _value(value: Any) -> float | str:
    as_number = real({"v": value}, "v")
    return str(value) if as_number is None else as_number


_REDUCTION = {
    "by": "ReduceLROnPlateau",
    "text": "ReduceLROnPlateau reducing learning rate to 1e-05.",
    "kind": "learning_rate",
    "announced": 1e-5,
    "after": 1e-5,
    "change": True,
}
