"""A metric still holds the state of the epoch before after it was reset."""

from __future__ import annotations

import itertools
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
        new = {id(audit) for audit in audits}
        pairs = itertools.pairwise([None, *run.audits("metric_state")])
        return merged(
            found
            for before, audit in pairs
            if audit is not None and id(audit) in new
            for metric in maps(audit.facts, "metrics")
            if text(metric, "key") not in meant
            for found in _of_metric(audit, metric, before)
        )


def _of_metric(audit: Audit, metric: Mapping[str, Any], before: Audit | None) -> Iterator[Finding]:
    """The first variable of the metric that the reset did not reset."""
    key = text(metric, "key") or "?"
    for variable in maps(metric, "variables"):
        after = real(variable, "after_reset")
        if after is None:
            continue
        wanted, what = real(variable, "initial"), "when new"
        if wanted is None:
            wanted, what = _after_the_reset_before(before, key, variable), "after the reset before"
        if wanted is None or abs(after - wanted) <= mean_tolerance(wanted, after):
            continue
        yield _finding(audit, metric, variable, key, after, wanted, what)
        return


def _after_the_reset_before(
    before: Audit | None, key: str, variable: Mapping[str, Any]
) -> float | None:
    """What an earlier reset left, where this one left all that had come together since.

    For variables of which nobody knows what they held when new. A constant is no state, so it must
    have changed since.
    """
    untouched = real(variable, "before_reset") == real(variable, "after_reset")
    if before is None or not untouched:
        return None
    for metric in maps(before.facts, "metrics"):
        if text(metric, "key") != key:
            continue
        for other in maps(metric, "variables"):
            if text(other, "name") == text(variable, "name"):
                return real(other, "after_reset")
    return None


def _finding(
    audit: Audit,
    metric: Mapping[str, Any],
    variable: Mapping[str, Any],
    key: str,
    after: float,
    wanted: float,
    what: str,
) -> Finding:
    name = text(variable, "name") or "state"
    left, right = two_numbers(after, wanted)
    before = real(variable, "before_reset")
    kind = text(metric, "class") or "metric"
    return Finding(
        subject=key,
        title=f"{key} keeps its state over the end of an epoch",
        message=f"After the reset at the begin of an epoch, the variable `{name}` of {key} "
        f"({kind}) holds {left}; {what} it held {right}."
        + (f" Right before the reset it held {number(before)}." if before is not None else "")
        + " Its number mixes epochs.",
        witnesses=(
            Witness(f"{key}: {name} after reset", after),
            Witness(f"{key}: {name} {what}", wanted),
        ),
        suggestion="Give the metric a `reset_state` that assigns the initial value to each of its "
        f"variables. If it is meant to span epochs: Expect(carried_metrics=('{key}',)).",
        first_step=audit.step,
        last_step=audit.step,
        severity=Severity.WARNING if metric.get("own_reset") is True else None,
        certainty=f"The gap is {number(abs(after - wanted))}; a reset leaves none.",
    )


def _example(*, after: float) -> RunHistory:
    variable = {"name": "count", "initial": 0.0, "before_reset": 96.0, "after_reset": after}
    metric = {"key": "hits", "class": "Hits", "own_reset": True, "variables": [variable]}
    return history(audits=[("metric_state", 32, {"epoch": 1, "metrics": [metric]})])
