from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, text, two_numbers
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit

# kind of comparison: (severity if not the rule's own, likely cause, what to change)
KINDS: dict[str, tuple[Severity | None, str, str]] = {
    "execution": (
        None,
        "A layer computes something else when it is compiled: it asks whether it runs eagerly, "
        "holds Python state, or meets a fault of the compiler.",
        "Compare layer by layer with run_eagerly=True and jit_compile on and off.",
    ),
    "evaluate": (
        None,
        "evaluate() saw other data or other weights than predict(), or a cached iterator.",
        "Call evaluate with fresh data, and without private arguments of Keras.",
    ),
    "batch": (
        Severity.WARNING,
        "Samples of one batch influence each other in inference: a layer works along the batch "
        "axis (a flip, a softmax, a tensordot over axis 0).",
        "Check the axis arguments of your own layers; axis 0 is the batch.",
    ),
    "mirror": (
        Severity.WARNING,
        "The layer treats the two sides differently: padding, interpolation or alignment is "
        "one-sided.",
        "Interpolate with half-pixel centers, or pad on both sides.",
    ),
    "spelling": (
        Severity.WARNING,
        "The same option, given as a string and as a function, takes another code path.",
        "Use the spelling whose result agrees with the definition, everywhere.",
    ),
}


@dataclass(frozen=True)
class PathDisagreement(Rule):
    """The same weights and the same input give two results.

    Compares: outputs computed in two ways that must agree: eagerly, as a graph, with XLA and by
    predict(); evaluate() and what is recomputed from predict(); a sample alone and inside a
    batch; mirrored input and mirrored output; two spellings of one option.

    Why: what you test is then not what you train, or what you deploy.

    Try: find the first layer whose outputs differ, and look for Python state or a wrong axis in
    it.

    Source: TensorFlow issues 29824, 44556, 39635, 29856, 41028; tolerance from Higham and Mary
    (2019), with the model's own noise and sensitivity measured beside it.
    """

    id = "path-disagreement"
    severity = Severity.CRITICAL
    needs = ("audit:paths",)

    # Tolerances beyond which chance (a maximum that flips in a rounding) is out of the question.
    certain_times: float = 10.0

    @staticmethod
    def fires_on() -> RunHistory:
        """A layer that computes something else when not eager."""
        return history(audits=[("paths", 1, {"comparisons": [_comparison(largest=0.4)]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """XLA's other order of additions."""
        return history(audits=[("paths", 1, {"comparisons": [_comparison(largest=3e-5)]})])

    def check(self, run: RunView) -> list[Finding]:
        rows = [
            (audit, row, difference)
            for audit in measured(run, "paths")
            for row in maps(audit.facts, "comparisons")
            if (difference := Difference.of(row)) is not None
        ]
        reasons = [difference.not_testable for _, _, difference in rows]
        if rows and all(reasons):
            raise NotTestable(reasons[0] or "")
        return merged(
            self._finding(audit, row, difference)
            for audit, row, difference in rows
            if difference.not_testable is None and difference.disagrees
        )

    def _finding(self, audit: Audit, row: Mapping[str, Any], difference: Difference) -> Finding:
        kind = text(row, "kind") or "execution"
        severity, cause, cure = KINDS.get(kind, KINDS["execution"])
        a, b = (_with_preposition(kind, way) for way in _ways(row))
        subject = text(row, "subject") or "outputs"
        site = f" ({text(row, 'site')})" if text(row, "site") else ""
        return Finding(
            subject=f"{subject}: {' / '.join(_ways(row))}",
            title=f"{subject} is one thing {a} and another {b}: {difference.in_words()}",
            message=(
                f"With the same weights and input at step {audit.step:,}, {subject}{site} was "
                f"computed twice, {a} and {b}: {_found(row, difference)}. {cause}"
            ),
            witnesses=_witnesses(row, a, b, difference),
            suggestion=cure,
            first_step=audit.step,
            last_step=audit.step,
            severity=self._severity(row, severity, difference),
            certainty=difference.certainty(),
        )

    def _severity(
        self, row: Mapping[str, Any], severity: Severity | None, difference: Difference
    ) -> Severity | None:
        # Similarities of all samples with all others (contrastive losses) depend on the batch by
        # design, and say so by their shape.
        other_shape = row.get("kind") == "batch" and math.isinf(difference.largest)
        if row.get("declared_follows_batch") or other_shape:
            return Severity.ADVICE
        narrow = difference.largest <= self.certain_times * difference.tolerance
        return Severity.WARNING if severity is None and narrow else severity


def _with_preposition(kind: str, way: str) -> str:
    """`by predict`, but `in a batch` and `alone`."""
    return way if kind == "batch" else f"by {way}"


def _found(row: Mapping[str, Any], difference: Difference) -> str:
    values = row.get("values")
    if isinstance(values, (list, tuple)) and len(values) == 2:
        return "{} and {}".format(*two_numbers(float(values[0]), float(values[1])))
    return f"{difference.in_words()}, at values of up to {number(difference.scale)}"


def _witnesses(
    row: Mapping[str, Any], a: str, b: str, difference: Difference
) -> tuple[Witness, ...]:
    """Both values where the two are single numbers."""
    values = row.get("values")
    if isinstance(values, (list, tuple)) and len(values) == 2:
        return Witness(a, float(values[0])), Witness(b, float(values[1]))
    return (
        Witness(f"{a}: largest value", difference.scale),
        Witness(f"largest difference of {b}", difference.largest),
    )


def _ways(row: Mapping[str, Any]) -> tuple[str, str]:
    ways = row.get("ways")
    if isinstance(ways, (list, tuple)) and len(ways) == 2:
        return str(ways[0]), str(ways[1])
    return "one way", "another"


def _comparison(largest: float) -> dict[str, Any]:
    return {
        "subject": "output",
        "kind": "execution",
        "ways": ["eager", "graph"],
        "difference": {
            "largest": largest,
            "scale": 1.0,
            "elements": 320,
            "dtype": "float32",
            "noise": 0.0,
        },
    }
