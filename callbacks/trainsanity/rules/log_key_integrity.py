"""A key of the logs shows another number than the metric it names."""

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
    whole,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class LogKeyIntegrity(Rule):
    """A key of the logs does not show the metric whose name it carries.

    Compares: each value in the logs at the end of an epoch with the result that the metric object
    of that name gives when it is asked itself; and the number of metric objects of one name with
    the one value that logs can hold.

    Why: values that swap places are plausible numbers under the wrong names. Of two metrics with
    one name Keras shows only the last, without a word.

    Try: give every metric its own `name=`; return values by name in `get_metrics_result`.

    Source: TensorFlow issues 32144 and 36668. Both numbers come from one state, so only the float32
    rounding of a result is allowed. A `train_step` of the user's may show numbers of its own, so
    there the rule speaks only of values that stand under each other's names.
    """

    id = "log-key-integrity"
    severity = Severity.CRITICAL
    needs = ("audit:log_keys",)

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(accuracy=0.4, recall=0.9)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(accuracy=0.9, recall=0.4)

    def check(self, run: RunView) -> Iterable[Finding]:
        audits = measured(run, "log_keys")
        own_step = run.has_audit("compile") and run.audit("compile").facts.get("custom_train_step")
        return merged(
            found
            for audit in audits
            for found in _of_epoch(audit, maps(audit.facts, "keys"), own_step=bool(own_step))
        )


def _of_epoch(audit: Audit, keys: list[Mapping[str, Any]], *, own_step: bool) -> Iterator[Finding]:
    for facts in keys:
        owners = whole(facts, "owners") or 0
        if owners > 1:
            yield _one_name_for_many(audit, facts, owners)
        elif owners == 1:
            yield from _other_value(audit, facts, keys, own_step=own_step)


def _other_value(
    audit: Audit, facts: Mapping[str, Any], keys: list[Mapping[str, Any]], *, own_step: bool
) -> Iterator[Finding]:
    key, shown, result = text(facts, "key"), real(facts, "shown"), real(facts, "result")
    if key is None or shown is None or result is None:
        return
    tolerance = float(mean_tolerance(shown, result))
    gap = abs(shown - result)
    if not gap > tolerance:
        return
    twin = _whose(shown, key, keys)
    if own_step and not twin:
        return  # a train_step of the user's may show numbers that are no metric's
    left, right = two_numbers(shown, result)
    yield Finding(
        subject=key,
        title=f"{key} in the logs is not what its metric says",
        message=f"The logs show {key} {left}. The metric of that name, "
        f"{text(facts, 'object') or 'asked itself'}, says {right}."
        + (f" The number shown belongs to {twin}." if twin else ""),
        witnesses=(Witness(f"{key} in the logs", shown), Witness(f"{key} by its metric", result)),
        suggestion="Check `get_metrics_result` and what `train_step` returns: match values to keys "
        "by the metric's name, never by position.",
        first_step=audit.step,
        last_step=audit.step,
        certainty=f"The gap is {number(gap)}; {number(tolerance, 2)} is allowed for float32 "
        "rounding.",
    )


def _whose(value: float, key: str, keys: list[Mapping[str, Any]]) -> str | None:
    """The key of another metric whose own result is this value."""
    for facts in keys:
        result = real(facts, "result")
        other = text(facts, "key")
        if result is not None and other != key and abs(result - value) <= mean_tolerance(value):
            return other
    return None


def _one_name_for_many(audit: Audit, facts: Mapping[str, Any], owners: int) -> Finding:
    key = text(facts, "key") or "?"
    return Finding(
        subject=key,
        title=f"{owners} metrics share the name {key}",
        message=f"{owners} metric objects are called {key}; the logs show one value, that of the "
        "last. The others are computed and never seen.",
        witnesses=(
            Witness("values shown", 1, "metrics"),
            Witness(f"metrics called {key}", owners, "metrics"),
        ),
        suggestion="Give each of them a name of its own with name=.",
        first_step=audit.step,
        last_step=audit.step,
        severity=Severity.WARNING,
        certainty="Both are counts, so nothing is allowed between them.",
    )


def _example(*, accuracy: float, recall: float) -> RunHistory:
    keys = [
        {"key": "accuracy", "shown": accuracy, "result": 0.9, "object": "Accuracy", "owners": 1},
        {"key": "recall", "shown": recall, "result": 0.4, "object": "Recall", "owners": 1},
    ]
    return history(audits=[("log_keys", 10, {"epoch": 0, "keys": keys})])
