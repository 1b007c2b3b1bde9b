"""Rows of the table `runs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    String,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import (
    AlertRow,
    AlertTransitionRow,
    AuditRow,
    OutboxRow,
    RunRow,
    SignalRow,
    VerdictRow,
)

ID_DIGITS = 8  # so many make the beginning of an id
MOST_DAMAGE = 20  # sentences about what of a run cannot be read


def get(session: Session, run_id: str) -> RunRow | None:
    return session.get(RunRow, run_id)


def locked(session: Session, run_id: str) -> RunRow | None:
    """The run as it is now, which nobody else changes until this transaction ends."""
    query = select(RunRow).where(RunRow.id == run_id).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def page(
    session: Session,
    *,
    project: str | None,
    state: str | None,
    q: str | None,
    limit: int,
    after: tuple[float, str] | None,
) -> Sequence[RunRow]:
    """Runs, newest first; `after` is (started_at, id) of the last one seen."""
    query = select(RunRow).where(RunRow.deleted_at.is_(None))
    if project is not None:
        query = query.where(RunRow.project == project)
    if state is not None:
        query = query.where(RunRow.state == state)
    if q:
        query = query.where(_mentions(q))
    if after is not None:
        query = query.where(tuple_(RunRow.started_at, RunRow.id) < after)
    query = query.order_by(RunRow.started_at.desc(), RunRow.id.desc()).limit(limit)
    return session.scalars(query).all()


def _mentions(q: str) -> ColumnElement[bool]:
    q = q.replace("\0", "\ufffd")  # as in what is stored
    as_in_json = json.dumps(q)[1:-1]
    ways = [
        RunRow.name.icontains(q, autoescape=True),
        RunRow.tags.cast(String).icontains(as_in_json, autoescape=True),
    ]
    # One engine keeps ids with hyphens, the other without. What is short, as "1e-3", is no id.
    digits = q.replace("-", "")
    if digits == q or len(digits) >= ID_DIGITS:
        ids = func.replace(RunRow.id.cast(String), "-", "")
        ways.append(ids.icontains(digits, autoescape=True))
    return or_(*ways)


def projects(session: Session) -> list[str]:
    query = select(RunRow.project).where(RunRow.deleted_at.is_(None)).distinct()
    return sorted(session.scalars(query))


def overdue(session: Session, now: float, limit: int = 100) -> Sequence[RunRow]:
    """Running runs that promised to report before `now` and did not."""
    query = (
        select(RunRow)
        .where(RunRow.alarm_after <= now, RunRow.state == "running", RunRow.deleted_at.is_(None))
        .order_by(RunRow.alarm_after)
        .limit(limit)
    )
    return session.scalars(query).all()


def mark_silent(session: Session, run_id: str, now: float) -> bool:
    """Says that a run is silent and asks for a judgement; False where it reported meanwhile."""
    changed = session.execute(
        update(RunRow)
        .where(RunRow.id == run_id, RunRow.state == "running", RunRow.alarm_after <= now)
        .values(state="silent", judge_due_at=now, version=RunRow.version + 1)
    )
    return cast(CursorResult[Any], changed).rowcount == 1


def note_damage(session: Session, run_id: str, damage: Sequence[str]) -> None:
    """Adds what cannot be read of a run to what is known of that, once."""
    run = locked(session, run_id)
    if run is None:
        return
    known = run.damage.splitlines()
    new = [text for text in dict.fromkeys(damage) if text not in known]
    if new and len(known) < MOST_DAMAGE:
        run.damage = "\n".join([*known, *new][:MOST_DAMAGE])
        run.version += 1


def counts_by_state(session: Session) -> dict[str, int]:
    query = (
        select(RunRow.state, func.count()).where(RunRow.deleted_at.is_(None)).group_by(RunRow.state)
    )
    return {row[0]: row[1] for row in session.execute(query)}


def to_sweep(session: Session) -> str | None:
    """A deleted run of which there is still something in the database."""
    query = select(RunRow.id).where(RunRow.deleted_at.is_not(None), RunRow.next_seq > 0).limit(1)
    return session.scalar(query)


def sweep(session: Session, run_id: str) -> None:
    """Deletes what is left of a deleted run when its samples are gone.

    Its row stays, nearly empty: so a client that still sends learns what happened.
    """
    for model in (AlertTransitionRow, AlertRow, OutboxRow, VerdictRow, AuditRow, SignalRow):
        session.execute(delete(model).where(model.run_id == run_id))
    session.execute(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(next_seq=0, config={}, environment={}, expect={}, tags=[], sparkline=None)
    )
