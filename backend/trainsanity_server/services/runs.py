"""What there is to see of runs: the list, one run, its alerts, verdicts, signals and audits."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainsanity.rules import all_rules
from trainsanity_server.errors import MalformedError, NotFoundError
from trainsanity_server.storage import alerts as alert_rows
from trainsanity_server.storage import evidence
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import AlertRow, RunRow

MAX_LIMIT = 500
MOST_AUDITS = 2000  # in one answer
MOST_AUDIT_BYTES = 8 * 1024 * 1024  # of their facts


@dataclass(frozen=True)
class Run:
    """A run as people and programs see it. Times are seconds since the epoch."""

    id: str
    project: str
    name: str
    kind: str
    session_id: str
    tags: list[str]
    state: str
    settled: bool
    started_at: float
    last_seen_at: float
    ended_at: float | None
    seconds: float  # from its start until it was last heard of, by the clock of its computer
    silent_after: float
    steps: int
    points: int
    keras_version: str
    backend: str
    alert_counts: Mapping[str, int]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    expect: Mapping[str, Any]
    sparkline: Mapping[str, Any] | None  # {"signal": name, "values": [...]}
    damage: str
    version: int


@dataclass(frozen=True)
class Alert:
    """A finding with a life."""

    id: str
    run_id: str
    rule: str
    subject: str
    severity: str
    state: str
    title: str
    message: str
    witnesses: Sequence[Mapping[str, Any]]
    suggestion: str
    certainty: str
    first_step: int
    last_step: int
    count: int
    opened_at: float
    updated_at: float
    resolved_at: float | None
    muted_until: float | None
    state_reason: str
    hidden: int
    cursor: int


@dataclass(frozen=True)
class StandingAlert:
    """An alert that somebody should look at, and where it belongs."""

    alert: Alert
    run_name: str
    project: str


@dataclass(frozen=True)
class Transition:
    """One change of an alert's state."""

    at: float
    from_state: str
    to_state: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What one rule says of the run so far."""

    rule: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class AuditFact:
    """One structured fact."""

    name: str
    step: int
    facts: Mapping[str, Any]


class AuditList(list[AuditFact]):
    """Audits of a run.

    Attributes:
        left_out: how many there are between the first and the newest.
    """

    def __init__(self, audits: Iterable[AuditFact], left_out: int) -> None:
        super().__init__(audits)
        self.left_out = left_out


@dataclass(frozen=True)
class RunPage:
    """Some runs, newest first, and where the next ones begin."""

    runs: Sequence[Run]
    next_cursor: str | None


class Runs:
    """Questions about runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self,
        *,
        project: str | None = None,
        state: str | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs, newest first.

        Args:
            q: part of a name, a tag or an id.
            cursor: `next_cursor` of the page before.
        """
        limit = max(1, min(limit, MAX_LIMIT))
        with self._database.read() as session:
            rows = run_rows.page(
                session, project=project, state=state, q=q, limit=limit + 1, after=_after(cursor)
            )
        runs = [run_of(row) for row in rows[:limit]]
        return RunPage(runs, _cursor(rows[limit - 1]) if len(rows) > limit else None)

    def projects(self) -> list[str]:
        """Names of all projects, sorted."""
        with self._database.read() as session:
            return run_rows.projects(session)

    def get(self, run_id: str) -> Run:
        """Raises NotFoundError."""
        with self._database.read() as session:
            return run_of(found(run_rows.get(session, checked_id(run_id)), run_id))

    def alerts(self, run_id: str) -> list[Alert]:
        """All alerts of a run, the worst first, then the oldest."""
        with self._database.read() as session:
            found(run_rows.get(session, checked_id(run_id)), run_id)
            return [alert_of(row) for row in alert_rows.of_run(session, run_id)]

    def standing_alerts(self, *, limit: int) -> list[StandingAlert]:
        """Open and acknowledged alerts over all runs, the worst first, then the newest."""
        with self._database.read() as session:
            return [
                StandingAlert(alert_of(row), run_name, project)
                for row, run_name, project in alert_rows.standing(session, limit)
            ]

    def alert(self, alert_id: str) -> Alert:
        """Raises NotFoundError."""
        with self._database.read() as session:
            return alert_of(found_alert(alert_rows.get(session, checked_id(alert_id)), alert_id))

    def transitions(self, alert_id: str) -> list[Transition]:
        """How an alert came to be in its state, oldest first."""
        with self._database.read() as session:
            rows = alert_rows.transitions(session, checked_id(alert_id))
            return [Transition(r.at, r.from_state, r.to_state, r.reason) for r in rows]

    def verdicts(self, run_id: str) -> list[Verdict]:
        """One for every rule, in the order of their slugs."""
        with self._database.read() as session:
            found(run_rows.get(session, checked_id(run_id)), run_id)
            known = {
                r.rule: Verdict(r.rule, r.verdict, r.reason)
                for r in alert_rows.verdicts(session, run_id)
            }
        unasked = "this rule has not looked at the run yet"
        return [
            known.get(rule.id, Verdict(rule.id, "not_testable", unasked)) for rule in all_rules()
        ]

    def audits(self, run_id: str, names: Collection[str] = ()) -> AuditList:
        """Audits in the order in which they arrived: the first, and the newest that fit.

        Args:
            names: only these; all where none is given.
        """
        with self._database.read() as session:
            found(run_rows.get(session, checked_id(run_id)), run_id)
            keys = evidence.audit_keys(session, run_id, names=names)
            chosen, left_out = evidence.first_and_newest(
                keys, most=MOST_AUDITS, most_bytes=MOST_AUDIT_BYTES
            )
            rows = evidence.audits(session, run_id, chosen)
            return AuditList([AuditFact(r.name, r.step, r.facts) for r in rows], left_out)


def run_of(row: RunRow) -> Run:
    return Run(
        id=row.id,
        project=row.project,
        name=row.name,
        kind=row.kind,
        session_id=row.session_id,
        tags=row.tags,
        state=row.state,
        settled=is_settled(row),
        started_at=row.started_at,
        last_seen_at=row.last_seen_at,
        ended_at=row.ended_at,
        seconds=(row.last_sent_at or row.last_seen_at) - row.started_at,
        silent_after=row.silent_after,
        steps=row.step,
        points=row.points,
        keras_version=row.keras_version,
        backend=row.backend,
        alert_counts={
            "critical": row.open_critical,
            "warning": row.open_warning,
            "advice": row.open_advice,
        },
        config=row.config,
        environment=row.environment,
        expect=row.expect,
        sparkline=row.sparkline,
        damage=row.damage,
        version=row.version,
    )


def is_settled(row: RunRow) -> bool:
    """It has ended and everything stored was judged; the last packet carried the end."""
    return row.state in ("finished", "failed") and row.judged_seq == row.next_seq


def alert_of(row: AlertRow) -> Alert:
    return Alert(**{name: getattr(row, name) for name in Alert.__dataclass_fields__})


def found(row: RunRow | None, run_id: str) -> RunRow:
    if row is None or row.deleted_at is not None:
        raise NotFoundError(f"there is no run {run_id}")
    return row


def found_alert(row: AlertRow | None, alert_id: str) -> AlertRow:
    if row is None:
        raise NotFoundError(f"there is no alert {alert_id}")
    return row


def checked_id(text: str) -> str:
    """An identifier in its usual form.

    Raises:
        NotFoundError: it is none, so nothing can be known by it.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise NotFoundError(f"an identifier is a UUID. Received: {text[:80]!r}") from None


def _cursor(row: RunRow) -> str:
    return base64.urlsafe_b64encode(json.dumps([row.started_at, row.id]).encode()).decode()


def _after(cursor: str | None) -> tuple[float, str] | None:
    if not cursor:
        return None
    try:
        started_at, run_id = json.loads(base64.urlsafe_b64decode(cursor))
        return float(started_at), str(uuid.UUID(run_id))
    except (ValueError, TypeError, AttributeError, binascii.Error):
        raise MalformedError(
            f"cursor must be the next_cursor of an earlier answer. Received: {cursor[:80]!r}"
        ) from None
