"""Rows of the tables `alerts`, `alert_transitions` and `verdicts`."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import AlertRow, AlertTransitionRow, VerdictRow

_RANK = case({"critical": 0, "warning": 1, "advice": 2}, value=AlertRow.severity, else_=3)


def get(session: Session, alert_id: str) -> AlertRow | None:
    return session.get(AlertRow, alert_id)


def of_run(session: Session, run_id: str) -> Sequence[AlertRow]:
    """The worst first, then the oldest."""
    query = select(AlertRow).where(AlertRow.run_id == run_id)
    return session.scalars(query.order_by(_RANK, AlertRow.opened_at, AlertRow.id)).all()


def changed_since(session: Session, run_id: str, cursor: int) -> Sequence[AlertRow]:
    query = select(AlertRow).where(AlertRow.run_id == run_id, AlertRow.cursor > cursor)
    return session.scalars(query.order_by(AlertRow.cursor)).all()


def transitions(session: Session, alert_id: str) -> Sequence[AlertTransitionRow]:
    query = select(AlertTransitionRow).where(AlertTransitionRow.alert_id == alert_id)
    return session.scalars(query.order_by(AlertTransitionRow.number)).all()


def verdicts(session: Session, run_id: str) -> Sequence[VerdictRow]:
    return session.scalars(select(VerdictRow).where(VerdictRow.run_id == run_id)).all()
