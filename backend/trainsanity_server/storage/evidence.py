"""Rows that say what a run measured, other than the samples: signals and audits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import AuditRow, SignalRow


def audits(session: Session, run_id: str, *, name: str | None = None) -> Sequence[AuditRow]:
    """In the order in which they arrived."""
    query = select(AuditRow).where(AuditRow.run_id == run_id)
    if name is not None:
        query = query.where(AuditRow.name == name)
    return session.scalars(query.order_by(AuditRow.seq, AuditRow.number)).all()


def signals(session: Session, run_id: str) -> Sequence[SignalRow]:
    query = select(SignalRow).where(SignalRow.run_id == run_id)
    return session.scalars(query.order_by(SignalRow.name)).all()
