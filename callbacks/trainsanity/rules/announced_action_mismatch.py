from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    and the state of the model or disk right before and right after the callback's hook; and the
    learning rate that a callback set at the end of an epoch with the one of the next step.

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
        return merged([*(f for f in found if f is not None), *self._undone(run)])

    def _undone(self, run: RunView) -> Iterator[Finding]:
        """A rate set at the end of an epoch, and the one before it in force at the next step."""
        name = "learning_rate/applied"
        if not run.has(name):
            return
        rows, new = run.rows(name), {id(audit) for audit in run.new_audits("announced")}
        for audit in run.audits("announced"):
            for action in maps(audit.facts, "actions"):
                step, before, after = (real(action, k) for k in ("step", "before", "after"))
                if step is None or action.get("kind") != "learning_rate_set":
                    continue
                next_one = int(np.searchsorted(rows.steps, step, side="right"))
                is_news = next_one >= rows.first_new or id(audit) in new
                if next_one >= len(rows) or not is_news:
                    continue
                applied = float(rows[name][next_one])
                if self._same(applied, before) and not self._same(applied, after):
                    yield _set_back(action, int(rows.steps[next_one]), applied)

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


def _set_back(action: Mapping[str, Any], step: int, applied: float) -> Finding:
    by = text(action, "by") or "A callback"
    return Finding(
        subject=f"{by}: the learning rate set back",
        title=f"{by} set the learning rate to {_word(action['after'])}, and it was set back",
        message=(
            f"At the end of an epoch {by} changed the learning rate from "
            f"{_word(action['before'])} to {_word(action['after'])}. Step {step:,}, the next one "
            f"that was measured, was trained with {_word(applied)} again: something sets it back, "
            "such as a LearningRateScheduler beside it."
        ),
        witnesses=(
            Witness("set at the end of the epoch", _value(action["after"])),
            Witness("learning_rate/applied", applied),
        ),
        suggestion=f"Let one callback decide about the learning rate: {by}, or the one that sets "
        "it when an epoch begins.",
        first_step=step,
        last_step=step,
        severity=Severity.WARNING,
        certainty="Rates are equal, or not, to float32 rounding.",
    )


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
