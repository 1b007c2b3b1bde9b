"""The shapes of answers, as the contract has them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

Severity = Literal["critical", "warning", "advice"]


def plain(value: Any) -> Any:
    """NaN and infinities as "NaN", "Infinity" and "-Infinity", which JSON can carry; never null."""
    if isinstance(value, float):
        if value != value:
            return "NaN"
        if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


_NUMBER = {
    "anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]
}
Number = Annotated[float, PlainSerializer(plain), WithJsonSchema(_NUMBER)]
Facts = Annotated[dict[str, Any], PlainSerializer(plain)]


class Shape(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Body(BaseModel):
    """What a call is told. A member that it does not know may be a slip, so it says so."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, given: Any) -> Any:
        unknown = sorted(set(given) - set(cls.model_fields)) if isinstance(given, dict) else []
        if unknown:
            raise PydanticCustomError(
                "unknown_member",
                "no member is called {unknown}; known are {known}",
                {"unknown": _quoted(unknown), "known": _quoted(cls.model_fields)},
            )
        return given


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names)


class AlertCounts(Shape):
    critical: int
    warning: int
    advice: int


class Run(Shape):
    id: str
    project: str
    name: str
    kind: str
    session_id: str
    tags: list[str]
    state: Literal["running", "finished", "failed", "silent"]
    settled: bool
    started_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None
    steps: int
    points: int
    keras_version: str
    backend: str
    alert_counts: AlertCounts
    config: Facts
    environment: Facts
    damage: str


class RunList(Shape):
    runs: list[Run]
    next_cursor: str | None


class Witness(Shape):
    name: str
    value: Annotated[
        float | str,
        PlainSerializer(plain),
        WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
    ]
    unit: str


class Alert(Shape):
    id: str
    run_id: str
    rule: str
    subject: str
    severity: Severity
    state: Literal["open", "acknowledged", "muted", "resolved"]
    title: str
    message: str
    witnesses: list[Witness]
    suggestion: str
    certainty: str
    first_step: int
    last_step: int
    count: int
    opened_at: datetime
    updated_at: datetime
    resolved_at: datetime | None
    muted_until: datetime | None
    state_reason: str
    hidden: int


class AlertList(Shape):
    alerts: list[Alert]


class Verdict(Shape):
    rule: str
    verdict: Literal["ok", "alert", "not_testable"]
    reason: str


class VerdictList(Shape):
    verdicts: list[Verdict]


class Audit(Shape):
    name: str
    step: int
    facts: Facts


class AuditList(Shape):
    audits: list[Audit]
    left_out: int


class Transition(Shape):
    at: datetime
    from_state: str
    to_state: str
    reason: str


class AlertWithHistory(Alert):
    transitions: list[Transition]


class Signal(Shape):
    name: str
    unit: str
    label: str
    first_step: int
    last_step: int
    count: int
    nonfinite: int
    last: Number
    min: Number
    max: Number


class SignalList(Shape):
    signals: list[Signal]


class Columns(Shape):
    """Either `step` and `value`, or `step` and the summaries."""

    name: str
    samples: int
    thinned: bool
    step: list[int]
    value: list[Number] | None = None
    last_step: list[int] | None = None
    min: list[Number] | None = None
    max: list[Number] | None = None
    mean: list[Number] | None = None
    first: list[Number] | None = None
    last: list[Number] | None = None
    count: list[int] | None = None
    nonfinite: list[int] | None = None


class SignalData(Shape):
    signals: list[Columns]
    damage: list[str]


class Receipt(Shape):
    next_seq: int
    cursor: int
    alerts: list[Alert]
    settled: bool
    run_url: str


# Every one is a problem document; see problems.py.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        401: "The server asks for a key.",
        404: "There is no such thing.",
        409: "Its state does not allow that.",
        422: "A parameter or the body is not what it should be.",
        503: "The database cannot be used now.",
    }.items()
}
