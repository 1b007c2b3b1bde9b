"""Rows of the tables `alerts`, `alert_transitions` and `verdicts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import AlertRow, AlertTransitionRow, RunRow, VerdictRow
from trainsanity_server.storage.upsert import insert_or_update

_RANK = case({"critical": 0, "warning": 1, "advice": 2}, value=AlertRow.severity, else_=3)


def get(session: Session, alert_id: str) -> AlertRow | None:
    return session.get(AlertRow, alert_id)


def of_run(session: Session, run_id: str) -> Sequence[AlertRow]:
    """The worst first, then the oldest."""
    query = select(AlertRow).where(AlertRow.run_id == run_id)
    return session.scalars(query.order_by(_RANK, AlertRow.opened_at, AlertRow.id)).all()


def standing(session: Session, limit: int) -> list[tuple[AlertRow, str, str]]:
    """Open and acknowledged ones with name and project of their run, the worst and newest first."""
    query = (
        select(AlertRow, RunRow.name, RunRow.project)
        .join(RunRow, RunRow.id == AlertRow.run_id)
        .where(AlertRow.state.in_(("open", "acknowledged")), RunRow.deleted_at.is_(None))
        .order_by(_RANK, AlertRow.opened_at.desc(), AlertRow.id)
        .limit(limit)
    )
    return [(row[0], row[1], row[2]) for row in session.execute(query)]


def changed_since(session: Session, run_id: str, cursor: int) -> Sequence[AlertRow]:
    query = select(AlertRow).where(AlertRow.run_id == run_id, AlertRow.cursor > cursor)
    return session.scalars(query.order_by(AlertRow.cursor)).all()


def transitions(session: Session, alert_id: str) -> Sequence[AlertTransitionRow]:
    query = select(AlertTransitionRow).where(AlertTransitionRow.alert_id == alert_id)
    return session.scalars(query.order_by(AlertTransitionRow.number)).all()


def verdicts(session: Session, run_id: str) -> Sequence[VerdictRow]:
    return session.scalars(select(VerdictRow).where(VerdictRow.run_id == run_id)).all()


def next_transition(session: Session, alert_id: str) -> int:
    query = select(func.max(AlertTransitionRow.number))
    latest = session.scalar(query.where(AlertTransitionRow.alert_id == alert_id))
    return 0 if latest is None else latest + 1


def open_counts(session: Session, run_id: str) -> dict[str, int]:
    """Alerts of a run that somebody should look at, by severity."""
    query = (
        select(AlertRow.severity, func.count())
        .where(AlertRow.run_id == run_id, AlertRow.state.in_(("open", "acknowledged")))
        .group_by(AlertRow.severity)
    )
    return {row[0]: row[1] for row in session.execute(query)}


def mutes_ended(session: Session, now: float, limit: int = 100) -> list[tuple[str, str]]:
    """Alerts whose mute is over, each with its run."""
    query = select(AlertRow.id, AlertRow.run_id)
    query = query.where(AlertRow.muted_until <= now, AlertRow.state == "muted")
    rows = session.execute(query.order_by(AlertRow.muted_until, AlertRow.id).limit(limit))
    return [(row[0], row[1]) for row in rows]


def put_verdicts(session: Session, run_id: str, verdicts: Mapping[str, tuple[str, str]]) -> None:
    """Verdict and reason by rule."""
    values = [
        {"run_id": run_id, "rule": rule, "verdict": verdict, "reason": reason}
        for rule, (verdict, reason) in verdicts.items()
    ]
    if values:
        session.execute(insert_or_update(session, VerdictRow, "verdict", "reason"), values)
