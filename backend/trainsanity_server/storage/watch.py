"""When something is due although nobody reports it: silent runs and the ends of mutes."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import AlertRow, RunRow

_WATCHED = (RunRow.state == "running", RunRow.deleted_at.is_(None))


def next_due(session: Session, *, grace_seconds: float) -> float | None:
    """When the next run counts as silent or the next mute ends, in seconds since the epoch."""
    promised = session.scalar(select(func.min(RunRow.alarm_after)).where(*_WATCHED))
    alarm = None if promised is None else promised + grace_seconds
    is_muted = AlertRow.state == "muted"
    mute = session.scalar(select(func.min(AlertRow.muted_until)).where(is_muted))
    return min((time for time in (alarm, mute) if time is not None), default=None)


def give_time(session: Session, now: float) -> None:
    """Lets every running run report within its promise from now on."""
    until = now + RunRow.silent_after
    session.execute(
        update(RunRow).where(*_WATCHED, RunRow.alarm_after < until).values(alarm_after=until)
    )
