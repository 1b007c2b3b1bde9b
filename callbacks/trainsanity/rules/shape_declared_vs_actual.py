from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit

Shape = list[int | None]


@dataclass(frozen=True)
class ShapeDeclaredVsActual(Rule):
    """A layer declares another shape than it returns.

    Compares: the output shape that a layer declares (`compute_output_shape`, its symbolic
    tensor) and the input shape recorded in its build config with the shapes of real tensors.

    Why: summary(), parameter counts and every layer built on top follow the declaration. A
    broadcast further down may then hide the difference for ever.

    Try: correct compute_output_shape, or remove it and let Keras infer the shape.

    Source: TensorFlow issues 32476, 20452 (false shapes), 27649, 44092, 31109 (lost
    dimensions), 33709 (the batch axis inside the result).
    """

    id = "shape-declared-vs-actual"
    severity = Severity.CRITICAL
    needs = ("audit:shapes",)

    # Batches of the same shape after which a dimension declared as unknown counts as constant.
    batches_seen: int = 2

    @staticmethod
    def fires_on() -> RunHistory:
        """Declared two wide, four wide in truth."""
        return history(audits=[("shapes", 1, {"layers": [_LAYER | {"declared": [None, 2]}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Unknown dimensions contradict nothing, and the batch may have any size."""
        rows = [_LAYER | {"declared": [None, None]}, _LAYER | {"declared": [64, 4]}]
        return history(audits=[("shapes", 1, {"layers": rows})])

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            found
            for audit in measured(run, "shapes")
            for row in maps(audit.facts, "layers")
            for found in self._check(audit, row)
        )

    def _check(self, audit: Audit, row: Mapping[str, Any]) -> Iterator[Finding]:
        declared, actual = _shape(row, "declared"), _shape(row, "actual")
        if actual is None:
            return
        if row.get("gets_other_shapes") is True and text(row, "declared_by") == "symbolic tensor":
            return  # what the layer before it is told of
        if declared is not None and _contradicts(declared, actual):
            yield _contradiction(audit, row, declared, actual)
        elif declared is None and row.get("what") == "input":
            yield _built_blind(audit, row, actual)
        elif axes := [a for a in row.get("follows_batch") or () if a != 0]:
            yield _mixes_batch(audit, row, declared, actual, axes)
        elif declared is not None and self._lost_dimension(row, declared):
            yield _lost(audit, row, declared, actual)

    def _lost_dimension(self, row: Mapping[str, Any], declared: Shape) -> bool:
        seen = whole(row, "seen") or 0
        known = row.get("inputs_known") is True and row.get("what") == "output"
        return known and seen >= self.batches_seen and None in declared[1:]


def _contradicts(declared: Shape, actual: Shape) -> bool:
    """Other rank, or another fixed dimension; the batch axis may have any size."""
    if len(declared) != len(actual):
        return True
    return any(d is not None and d != a for d, a in zip(declared[1:], actual[1:], strict=True))


def _contradiction(audit: Audit, row: Mapping[str, Any], declared: Shape, actual: Shape) -> Finding:
    is_input = row.get("what") == "input"
    by = text(row, "declared_by") or "the layer"
    if is_input:
        cause = (
            "A layer that is shared may see several shapes; one that is not was built for another."
        )
        cure = "Build the layer with the shape that it really gets."
    else:
        cause = "Layers behind it were built for the declared shape, and fit only by broadcasting."
        cure = f"Return {_in_words([None, *actual[1:]])} from compute_output_shape, or delete it."
    return _finding(
        audit,
        row,
        declared,
        actual,
        title=f"{_name(row)} declares {_in_words(declared)}, returns {_in_words(actual)}"
        if not is_input
        else f"{_name(row)} was built for {_in_words(declared)}, gets {_in_words(actual)}",
        message=(
            f"By {by}, the {'input' if is_input else 'output'} of {_who(row)} has shape "
            f"{_in_words(declared)}; the real tensor has {_in_words(actual)}. {cause}"
        ),
        suggestion=cure,
        severity=Severity.ADVICE if is_input else None,
    )


def _built_blind(audit: Audit, row: Mapping[str, Any], actual: Shape) -> Finding:
    return _finding(
        audit,
        row,
        None,
        actual,
        title=f"{_name(row)} was built without a shape",
        message=(
            f"{_who(row)} recorded no input shape when it was built, but gets "
            f"{_in_words(actual)}. Something built it before its input was known, for example its "
            "own compute_output_shape."
        ),
        suggestion="Do not call build() from compute_output_shape; build on the first real input.",
        severity=Severity.WARNING,
    )


def _mixes_batch(
    audit: Audit, row: Mapping[str, Any], declared: Shape | None, actual: Shape, axes: list[int]
) -> Finding:
    return _finding(
        audit,
        row,
        declared,
        actual,
        title=f"{_name(row)}: axis {axes[0]} of the output grows with the batch",
        message=(
            f"The output of {_who(row)} has shape {_in_words(actual)}, and the size of axis "
            f"{', '.join(map(str, axes))} follows the batch size: every sample is combined with "
            "every other. That is right for contrastive losses and wrong nearly everywhere else "
            "(tensordot where a batched product was meant)."
        ),
        suggestion="Use einsum with the batch letter on both sides, or Dot(axes=...).",
        severity=Severity.ADVICE,
    )


def _lost(audit: Audit, row: Mapping[str, Any], declared: Shape, actual: Shape) -> Finding:
    return _finding(
        audit,
        row,
        declared,
        actual,
        title=f"{_name(row)} forgets a dimension: {_in_words(declared)} for {_in_words(actual)}",
        message=(
            f"All inputs of {_who(row)} have known dimensions, and its output was "
            f"{_in_words(actual)} in all {row.get('seen')} batches looked at, but it declares "
            f"{_in_words(declared)}. Layers that need the dimension cannot be built on it."
        ),
        suggestion="Return the full shape from compute_output_shape.",
        severity=Severity.ADVICE,
    )


def _finding(
    audit: Audit,
    row: Mapping[str, Any],
    declared: Shape | None,
    actual: Shape,
    *,
    title: str,
    message: str,
    suggestion: str,
    severity: Severity | None,
) -> Finding:
    return Finding(
        subject=_subject(row),
        title=title,
        message=message,
        witnesses=(
            Witness(f"declared by {text(row, 'declared_by') or 'the layer'}", _in_words(declared)),
            Witness("real tensor", _in_words(actual)),
        ),
        suggestion=suggestion,
        first_step=audit.step,
        last_step=audit.step,
        severity=severity,
        certainty="Shapes are compared exactly, without unknown dimensions and the batch axis.",
    )


def _shape(row: Mapping[str, Any], key: str) -> Shape | None:
    value = row.get(key)
    return list(value) if isinstance(value, (list, tuple)) else None


def _in_words(shape: Shape | None) -> str:
    if shape is None:
        return "unknown"
    return f"({', '.join(str(d) for d in shape)}{',' if len(shape) == 1 else ''})"


def _subject(row: Mapping[str, Any]) -> str:
    """The layer; its input and further outputs apart, since they may be wrong on their own."""
    index = whole(row, "index") or 0
    what = "input" if row.get("what") == "input" else f"output {index}" if index else ""
    return f"{_name(row)} {what}".strip()


def _name(row: Mapping[str, Any]) -> str:
    return text(row, "name") or "?"


def _who(row: Mapping[str, Any]) -> str:
    site = f" at {text(row, 'site')}" if text(row, "site") else ""
    return f"{_name(row)} ({text(row, 'class') or 'layer'}{site})"


_LAYER = {
    "name": "head",
    "class": "Head",
    "what": "output",
    "declared_by": "compute_output_shape",
    "actual": [32, 4],
    "inputs_known": True,
    "seen": 1,
}
