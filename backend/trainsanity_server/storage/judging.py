"""Who judges which run, and how far it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, and_, case, or_, select, update
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import RunRow


def due(session: Session, owner: str, now: float, limit: int) -> Sequence[str]:
    """Runs with something to judge that nobody else has in hand."""
    query = (
        select(RunRow.id)
        .where(
            RunRow.judge_due_at <= now,
            RunRow.deleted_at.is_(None),
            or_(RunRow.lease_until <= now, RunRow.lease_owner == owner),
        )
        .order_by(RunRow.judge_due_at)
        .limit(limit)
    )
    return session.scalars(query).all()


def claim(session: Session, run_id: str, owner: str, now: float, until: float) -> bool:
    """Takes a run in hand; False where another server was faster."""
    is_free = or_(RunRow.lease_until <= now, RunRow.lease_owner == owner)
    return _changed(
        session,
        update(RunRow)
        .where(RunRow.id == run_id, is_free)
        .values(lease_owner=owner, lease_until=until),
    )


def release(session: Session, owner: str) -> None:
    """Lets go of everything, so that another server need not wait."""
    session.execute(
        update(RunRow).where(RunRow.lease_owner == owner).values(lease_owner=None, lease_until=0.0)
    )


def take_over(session: Session) -> None:
    """Frees what is to be judged, whoever has it in hand."""
    session.execute(
        update(RunRow)
        .where(RunRow.judge_due_at.is_not(None), RunRow.lease_owner.is_not(None))
        .values(lease_owner=None, lease_until=0.0)
    )


def advance(session: Session, seen: RunRow, judged_seq: int, owner: str, until: float) -> bool:
    """Notes how far a run was judged, and whether there is more.

    Args:
        seen: the run as it was when it was judged.

    Returns:
        False where the run is in other hands by now: nothing may be stored.
    """
    is_done = and_(RunRow.next_seq == judged_seq, RunRow.state == seen.state)
    return _changed(
        session,
        update(RunRow)
        .where(
            RunRow.id == seen.id,
            RunRow.lease_owner == owner,
            RunRow.judged_seq == seen.judged_seq,
            RunRow.deleted_at.is_(None),
        )
        .values(
            judged_seq=judged_seq,
            judge_due_at=case((is_done, None), else_=RunRow.judge_due_at),
            lease_until=until,
            version=RunRow.version + 1,
        ),
    )


def _changed(session: Session, statement: Any) -> bool:
    return cast(CursorResult[Any], session.execute(statement)).rowcount == 1
