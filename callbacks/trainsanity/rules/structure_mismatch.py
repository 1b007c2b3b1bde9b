from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trainsanity.rules.comparison import finding_of, maps, measured, merged, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class StructureMismatch(Rule):
    """The layers that are listed are not the layers that run.

    Compares: the layers and parameters that the model lists with the layers that ran while the
    training step was traced and in one inference pass, and with the parameters that get a
    gradient.

    Why: a layer that is listed and never runs costs memory and learns nothing; one that runs
    unlisted is missing from summary(), from the optimizer and from the saved file.

    Try: keep layers as attributes of the model, make each once, and call it.

    Source: TensorFlow issues 42679 (a branch missing from summary), 30486 (unused copies in
    TimeDistributed).
    """

    id = "structure-mismatch"
    severity = Severity.WARNING
    needs = ("audit:structure",)

    @staticmethod
    def fires_on() -> RunHistory:
        """A wrapper that makes two copies of its layer and uses one."""
        return history(audits=[("structure", 1, {"layers": [_LAYER | {"parameters": 12}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """A shared layer that runs twice, and a dropout that runs in training only."""
        dropout = _LAYER | {"name": "dropout", "path": "dropout", "parameters": 0, "ran": 1}
        facts = {"layers": [_LAYER | {"ran": 4}, dropout | {"parameters_with_gradient": 0}]}
        return history(audits=[("structure", 1, facts)])

    def check(self, run: RunView) -> list[Finding]:
        found = merged(found for audit in measured(run, "structure") for found in _check(audit))
        if run.has_audit("compile") and run.audit("compile").facts.get("custom_train_step"):
            # A train_step of the user's calls what it likes, beside the model's own call.
            return [replace(one, severity=Severity.ADVICE) for one in found]
        return found


def _check(audit: Audit) -> Iterator[Finding]:
    rows = [
        r for r in maps(audit.facts, "layers") if whole(r, "parameters") and not r.get("frozen")
    ]
    guilty = [r for r in rows if _never_ran(r) or _unlisted(r) or _partly_used(r)]
    for row in guilty:
        # What an inner layer explains is not said of its container again.
        if any(_inside(other, row) for other in guilty):
            continue
        if _never_ran(row):
            yield _about_idle(audit, row)
        elif _unlisted(row):
            yield _about_unlisted(audit, row)
        else:
            yield _about_copies(audit, row)


def _never_ran(row: Mapping[str, Any]) -> bool:
    learns = bool(whole(row, "parameters_with_gradient"))  # then it ran, if only in the loss
    return row.get("listed") is True and whole(row, "ran") == 0 and not learns


def _unlisted(row: Mapping[str, Any]) -> bool:
    return row.get("listed") is False and (whole(row, "ran") or 0) > 0


def _partly_used(row: Mapping[str, Any]) -> bool:
    used = whole(row, "parameters_with_gradient")
    return used is not None and 0 < used < (whole(row, "parameters") or 0)


def _inside(row: Mapping[str, Any], container: Mapping[str, Any]) -> bool:
    return str(row.get("path")).startswith(f"{container.get('path')}/")


def _about_idle(audit: Audit, row: Mapping[str, Any]) -> Finding:
    return _finding(
        audit,
        _name(row),
        title=f"{_name(row)} is part of the model and never runs",
        message=(
            f"The model lists {_who(row)} with {_count(row, 'parameters')} parameters, but it was "
            "called neither while the training step was traced nor in an inference pass. It "
            "keeps its initial weights for ever."
        ),
        witnesses=(
            Witness("listed parameters", _count_of(row, "parameters"), "parameters"),
            Witness("calls", 0, "calls"),
        ),
        suggestion=f"Call {_name(row)} in the model, or do not create it.",
    )


def _about_unlisted(audit: Audit, row: Mapping[str, Any]) -> Finding:
    return _finding(
        audit,
        _name(row),
        title=f"{_name(row)} runs and is not part of the model",
        message=(
            f"{_who(row)} with {_count(row, 'parameters')} parameters ran {row.get('ran')} times, "
            "but the model does not list it: summary(), the optimizer and the saved file know "
            "nothing of it. It is held by a Lambda, a closure or a plain container."
        ),
        witnesses=(
            Witness("listed calls", 0, "calls"),
            Witness("calls", _count_of(row, "ran"), "calls"),
        ),
        suggestion=f"Make {_name(row)} an attribute of a layer or model, outside of Lambda.",
    )


def _about_copies(audit: Audit, row: Mapping[str, Any]) -> Finding:
    return _finding(
        audit,
        _name(row),
        title=f"{_name(row)} owns more parameters than it trains",
        message=(
            f"{_who(row)} owns {_count(row, 'parameters')} trainable parameters, of which "
            f"{_count(row, 'parameters_with_gradient')} get a gradient. The others belong to a "
            "copy or a branch that is not used."
        ),
        witnesses=(
            Witness("parameters owned", _count_of(row, "parameters"), "parameters"),
            Witness(
                "parameters with a gradient",
                _count_of(row, "parameters_with_gradient"),
                "parameters",
            ),
        ),
        suggestion="Create inner layers once, in __init__ or build, and call every one of them.",
    )


_finding = partial(
    finding_of, certainty="All are counts, so any difference counts. Frozen layers are left out."
)


def _name(row: Mapping[str, Any]) -> str:
    return text(row, "path") or text(row, "name") or "?"


def _who(row: Mapping[str, Any]) -> str:
    site = f" at {text(row, 'site')}" if text(row, "site") else ""
    return f"{_name(row)} ({text(row, 'class') or 'layer'}{site})"


def _count_of(row: Mapping[str, Any], key: str) -> int:
    return whole(row, key) or 0


def _count(row: Mapping[str, Any], key: str) -> str:
    return f"{_count_of(row, key):,}"


_LAYER = {
    "name": "time_distributed",
    "class": "MyTimeDistributed",
    "path": "time_distributed",
    "listed": True,
    "ran": 2,
    "parameters": 6,
    "parameters_with_gradient": 6,
    "frozen": False,
}
