"""Who judges which run, and how far it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, and_, bindparam, case, or_, select, update
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import RunRow

# Run for each packet of every run, beside a training that needs the processor: put together once,
# and of the table, since what an ORM does for objects of the session is as much work again.
_RUNS = RunRow.__table__.c
_DUE = (
    select(_RUNS.id)
    .where(
        _RUNS.judge_due_at <= bindparam("now"),
        _RUNS.deleted_at.is_(None),
        or_(_RUNS.lease_until <= bindparam("now"), _RUNS.lease_owner == bindparam("owner")),
    )
    .order_by(_RUNS.judge_due_at)
    .limit(bindparam("most"))
)
_IS_DONE = and_(_RUNS.next_seq == bindparam("judged"), _RUNS.state == bindparam("seen_state"))
_ADVANCE = (
    update(RunRow.__table__)
    .where(
        _RUNS.id == bindparam("run"),
        _RUNS.lease_owner == bindparam("owner"),
        _RUNS.judged_seq == bindparam("seen_seq"),
        _RUNS.deleted_at.is_(None),
    )
    .values(
        judged_seq=bindparam("judged"),
        judge_due_at=case((_IS_DONE, None), else_=_RUNS.judge_due_at),
        lease_until=bindparam("until"),
        sparkline=bindparam("curve"),
        version=_RUNS.version + 1,
    )
)
# Not by RETURNING, which the SQLite of Python 3.11 on some systems does not know.
_CURSOR = select(_RUNS.alert_cursor).where(_RUNS.id == bindparam("run"))


def due(session: Session, owner: str, now: float, limit: int) -> Sequence[str]:
    """Runs with something to judge that nobody else has in hand."""
    return session.scalars(_DUE, {"now": now, "owner": owner, "most": limit}).all()


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


def advance(
    session: Session,
    seen: RunRow,
    judged_seq: int,
    owner: str,
    until: float,
    curve: dict[str, Any] | None,
) -> int | None:
    """Notes how far a run was judged, whether there is more, and the curve shown beside it.

    Args:
        seen: the run as it was when it was judged.

    Returns:
        How many changes of alerts the run has seen, or None where it is in other hands by now:
        nothing may be stored.
    """
    values = {
        "run": seen.id,
        "owner": owner,
        "seen_seq": seen.judged_seq,
        "seen_state": seen.state,
        "judged": judged_seq,
        "until": until,
        "curve": curve,
    }
    if not _changed(session, _ADVANCE, values):
        return None
    cursor: int = session.scalars(_CURSOR, {"run": seen.id}).one()
    return cursor


def _changed(session: Session, statement: Any, values: dict[str, Any] | None = None) -> bool:
    return cast(CursorResult[Any], session.execute(statement, values)).rowcount == 1
