"""A metric still holds the state of the epoch before after it was reset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    maps,
    mean_tolerance,
    measured,
    merged,
    number,
    real,
    text,
    two_numbers,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class MetricStateCarryover(Rule):
    """A metric carries its state from one epoch into the next.

    Compares: the state of each metric right after Keras reset it with its state when it was new.

    Why: Keras resets metrics at every epoch and before every evaluation. A metric that does not
    follow shows a number that mixes epochs, and validation numbers that contain training.

    Try: implement `reset_state` so that it sets every variable back to its initial value.

    Source: TensorFlow issue 31458. State is set, not computed, so only rounding is allowed. A
    metric whose `reset_state` is the user's may be meant to span epochs: a warning.
    """

    id = "metric-state-carryover"
    severity = Severity.CRITICAL
    needs = ("audit:metric_state",)

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(after=96.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(after=0.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        meant = set(run.expects("carried_metrics", ()) or ())
        audits = measured(run, "metric_state")
        if not any(maps(audit.facts, "metrics") for audit in run.audits("metric_state")):
            raise NotTestable("the model has no metrics")
        return merged(
            found
            for audit in audits
            for metric in maps(audit.facts, "metrics")
            if text(metric, "key") not in meant
            for found in _of_metric(audit, metric)
        )


def _of_metric(audit: Audit, metric: Mapping[str, Any]) -> Iterator[Finding]:
    key = text(metric, "key") or "?"
    for variable in maps(metric, "variables"):
        initial, after = real(variable, "initial"), real(variable, "after_reset")
        if initial is None or after is None:
            continue
        tolerance = float(mean_tolerance(initial, after))
        if not abs(after - initial) > tolerance:
            continue
        name = text(variable, "name") or "state"
        left, right = two_numbers(after, initial)
        before = real(variable, "before_reset")
        yield Finding(
            subject=key,
            title=f"{key} keeps its state over the end of an epoch",
            message=f"After the reset at the begin of an epoch, the variable `{name}` of {key} "
            f"({text(metric, 'class') or 'metric'}) holds {left}; when it was new it held {right}."
            + (f" Before the reset it held {number(before)}." if before is not None else "")
            + " Its number mixes epochs.",
            witnesses=(
                Witness(f"{key}: {name} after reset", after),
                Witness(f"{key}: {name} when new", initial),
            ),
            suggestion="Give the metric a `reset_state` that assigns the initial value to each of "
            f"its variables. If it is meant to span epochs: Expect(carried_metrics=('{key}',)).",
            first_step=audit.step,
            last_step=audit.step,
            severity=Severity.WARNING if metric.get("own_reset") is True else None,
            certainty=f"The gap is {number(abs(after - initial))}; a reset leaves none.",
        )
        return


def _example(*, after: float) -> RunHistory:
    variable = {"name": "count", "initial": 0.0, "before_reset": 96.0, "after_reset": after}
    metric = {"key": "hits", "class": "Hits", "own_reset": True, "variables": [variable]}
    return history(audits=[("metric_state", 32, {"epoch": 1, "metrics": [metric]})])
