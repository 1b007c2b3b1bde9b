from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, text
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.mask_flow import flow_layer
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class MaskSemantics(Rule):
    """Masked or future positions influence outputs that must not see them.

    Compares: outputs at valid positions before and after the content of masked (or, where
    causality is declared, later) positions was changed, also of layers that take a mask and get
    none, because an operator such as `x + y` lost it before them; and values at masked positions
    with the flag that says what they should be.

    Why: the model learns from padding, or from the answer, and fails where neither is there.

    Try: take `mask` in call() and use it; use_causal_mask=True in attention, padding="causal"
    in convolutions.

    Source: TensorFlow issue 30423 (zero_output_for_mask); Keras guide "Understanding masking &
    padding".
    """

    id = "mask-semantics"
    severity = Severity.CRITICAL
    needs = ("audit:mask_semantics",)

    @staticmethod
    def fires_on() -> RunHistory:
        """Causality was declared, and attention sees the future."""
        return history(audits=[("mask_semantics", 1, {"checks": [_check("future", 0.3)]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Rounding, as the masked terms are added as zeros."""
        return history(audits=[("mask_semantics", 1, {"checks": [_check("padding", 1e-6)]})])

    def check(self, run: RunView) -> list[Finding]:
        rows = [
            (audit, row)
            for audit in measured(run, "mask_semantics")
            for row in maps(audit.facts, "checks")
        ]
        found = [f for audit, row in rows if (f := _finding(audit, row)) is not None]
        found = _first_of_each_loss(found)
        if rows and not found and not any(_testable(row) for _, row in rows):
            raise NotTestable("no layer with a mask gave outputs that could be compared")
        return merged(found)


def _testable(row: Mapping[str, Any]) -> bool:
    difference = Difference.of(row)
    if text(row, "kind") == "masked_output":
        return None not in (text(row, "declared"), text(row, "actual"))
    return difference is not None and difference.not_testable is None


def _finding(audit: Audit, row: Mapping[str, Any]) -> Finding | None:
    if not _testable(row):
        return None
    if text(row, "kind") == "masked_output":
        return _flag(audit, row) if row["declared"] != row["actual"] else None
    difference = Difference.of(row)
    if difference is None or not difference.disagrees:
        return None
    return _leak(audit, row, difference)


def _leak(audit: Audit, row: Mapping[str, Any], difference: Difference) -> Finding:
    layer, future = text(row, "layer") or "model", text(row, "kind") == "future"
    if text(row, "kind") == "lost":
        return _without_mask(audit, row, difference)
    changed = "later positions" if future else "masked positions"
    seen = "earlier outputs" if future else "outputs at valid positions"
    if future:
        cause, severity = "Causality is declared, but the layer looks ahead.", None
    elif row.get("uses_mask"):
        cause, severity = "The layer takes the mask and does not honour it.", Severity.WARNING
    else:
        cause = "The layer passes the mask on without using it, while it mixes positions."
        severity = Severity.ADVICE
    return Finding(
        subject=f"{layer}: {text(row, 'kind')}",
        title=f"{layer}: {changed} change {seen} by {number(difference.largest)}",
        message=(
            f"When the content of {changed} was changed, {seen} of {_who(row)} moved by up to "
            f"{number(difference.largest)}, at values of up to {number(difference.scale)}. {cause}"
        ),
        witnesses=(
            Witness("expected change", 0.0),
            Witness("largest change", difference.largest),
        ),
        suggestion=(
            'Use use_causal_mask=True in attention, or padding="causal" in convolutions.'
            if future
            else "Use the mask in call(), or multiply masked positions by 0 before the layer."
        ),
        first_step=audit.step,
        last_step=audit.step,
        severity=severity,
        certainty=difference.certainty(),
    )


def _without_mask(audit: Audit, row: Mapping[str, Any], difference: Difference) -> Finding:
    layer, at = text(row, "layer") or "model", row.get("lost_at")
    lost = flow_layer(at if isinstance(at, Mapping) else {})
    return Finding(
        subject=f"mask lost at {lost.name}",
        title=f"{layer} reads padding: the mask is lost at {lost.name}",
        message=(
            f"The mask died at {lost.in_words()}, so {_who(row)}, which would use it, gets none: "
            "when the content of padding was changed, its outputs moved by up to "
            f"{number(difference.largest)}, at values of up to {number(difference.scale)}."
        ),
        witnesses=(
            Witness("expected change", 0.0),
            Witness("largest change", difference.largest),
        ),
        suggestion=lost.remedy(),
        first_step=audit.step,
        last_step=audit.step,
        severity=Severity.WARNING,
        certainty=difference.certainty(),
    )


def _first_of_each_loss(found: list[Finding]) -> list[Finding]:
    """The layers behind the first one read padding as well."""
    first: dict[str, Finding] = {}
    return [f for f in found if first.setdefault(f.subject, f) is f]


def _flag(audit: Audit, row: Mapping[str, Any]) -> Finding:
    layer = text(row, "layer") or "model"
    return Finding(
        subject=f"{layer}: masked_output",
        title=f"{layer} gives {row['actual']} at masked positions, declares {row['declared']}",
        message=(
            f"By its flag zero_output_for_mask, {_who(row)} gives {row['declared']} at masked "
            f"positions; there were {row['actual']} on the captured batch. Somebody multiplies by "
            "the mask, or ignores the flag."
        ),
        witnesses=(
            Witness("declared by the flag", str(row["declared"])),
            Witness("at masked positions", str(row["actual"])),
        ),
        suggestion="Pass zero_output_for_mask on, and do not multiply outputs by the mask.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="Zeros are compared exactly.",
    )


def _who(row: Mapping[str, Any]) -> str:
    site = f" at {text(row, 'site')}" if text(row, "site") else ""
    return f"{text(row, 'layer') or 'model'} ({text(row, 'class') or 'layer'}{site})"


def _check(kind: str, largest: float) -> dict[str, Any]:
    return {
        "layer": "attention",
        "class": "MultiHeadAttention",
        "kind": kind,
        "uses_mask": True,
        "difference": {
            "largest": largest,
            "scale": 1.0,
            "elements": 640,
            "dtype": "float32",
            "noise": 0.0,
        },
    }
