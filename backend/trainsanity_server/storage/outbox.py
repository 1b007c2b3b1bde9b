"""Rows of the tables `outbox` and `channels`.

A row of the outbox is claimed by moving its next attempt into the future, together with its
channel's next sending time, by conditional updates: so any number of server processes may share the
work, and what a killed one had in hand comes due again by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, case, func, select, update
from sqlalchemy.orm import Session

from trainsanity_server.storage.ids import new_id
from trainsanity_server.storage.models import AlertRow, ChannelRow, OutboxRow, RunRow

# What people are told of an alert, as it was when it changed its state.
NEWS = (
    "rule",
    "subject",
    "severity",
    "title",
    "message",
    "witnesses",
    "suggestion",
    "certainty",
    "first_step",
    "last_step",
    "count",
    "opened_at",
    "resolved_at",
)
MOST_AT_ONCE = 1000  # rows in one message


def add(
    session: Session,
    channels: Iterable[str],
    kind: str,
    alert: AlertRow,
    run: RunRow,
    now: float,
) -> None:
    """Puts news of an alert into the outbox of each channel, in the caller's transaction.

    Args:
        kind: "opened" or "resolved".
    """
    news = {name: getattr(alert, name) for name in NEWS}
    news |= {"run_name": run.name, "project": run.project}
    session.add_all(
        OutboxRow(
            id=new_id(),
            channel=channel,
            alert_id=alert.id,
            run_id=run.id,
            kind=kind,
            created_at=now,
            next_attempt_at=now,
            news=news,
        )
        for channel in channels
    )


# channels


def channel(session: Session, name: str) -> ChannelRow | None:
    return session.get(ChannelRow, name)


def take_turn(session: Session, name: str, now: float, until: float) -> bool:
    """Whether the channel may be used now; if so, nobody else may before `until`."""
    changed = session.execute(
        update(ChannelRow)
        .where(ChannelRow.name == name, ChannelRow.state == "on", ChannelRow.next_send_at <= now)
        .values(next_send_at=until)
    )
    return _count(changed) == 1


def hold(session: Session, name: str, until: float) -> None:
    """Nothing goes out before `until`."""
    later = ChannelRow.next_send_at < until
    session.execute(
        update(ChannelRow).where(ChannelRow.name == name, later).values(next_send_at=until)
    )


# outbox


def next_due(session: Session, channel: str) -> float | None:
    """When the first waiting row comes due; None where none waits."""
    waiting = (OutboxRow.state == "waiting", OutboxRow.channel == channel)
    return session.scalar(select(func.min(OutboxRow.next_attempt_at)).where(*waiting))


def claim(
    session: Session, channel: str, now: float, until: float, most: int = MOST_AT_ONCE
) -> Sequence[OutboxRow]:
    """Takes at most so many due rows of one kind, the oldest first; due again at `until`.

    Of one alert only the oldest waiting row is taken: nobody reads of an end before the beginning.
    """
    waiting = _waiting(session, channel)
    due = [row for row in _first_of_each_alert(waiting) if row.next_attempt_at <= now]
    chosen = [row for row in due if row.kind == due[0].kind][:most]
    for row in chosen:
        row.next_attempt_at, row.attempts = until, row.attempts + 1
    return chosen


def _waiting(session: Session, channel: str) -> Sequence[OutboxRow]:
    query = select(OutboxRow).where(OutboxRow.state == "waiting", OutboxRow.channel == channel)
    query = query.order_by(OutboxRow.created_at, OutboxRow.id).limit(2 * MOST_AT_ONCE)
    return session.scalars(query).all()


def _first_of_each_alert(rows: Iterable[OutboxRow]) -> list[OutboxRow]:
    first: dict[str, OutboxRow] = {}
    for row in rows:
        first.setdefault(row.alert_id, row)
    return list(first.values())


def close(session: Session, ids: Collection[str], state: str, answer: str) -> None:
    """Ends the waiting of these rows: "sent", "muted" or "dead"."""
    session.execute(_these(ids).values(state=state, last_answer=answer))


def postpone(
    session: Session, ids: Collection[str], until: float, answer: str, *, dead_before: float
) -> None:
    """Rows wait for another attempt, except those from before `dead_before`."""
    is_dead = OutboxRow.created_at < dead_before
    session.execute(
        _these(ids).values(
            state=case((is_dead, "dead"), else_="waiting"),
            next_attempt_at=until,
            last_answer=answer,
        )
    )


def bury(session: Session, channel: str, before: float, answer: str) -> int:
    """Gives up on rows that have waited since before then; says how many."""
    changed = session.execute(
        update(OutboxRow)
        .where(
            OutboxRow.state == "waiting",
            OutboxRow.channel == channel,
            OutboxRow.created_at < before,
        )
        .values(state="dead", last_answer=answer)
    )
    return _count(changed)


def revive(session: Session, channel: str, now: float) -> int:
    """What was given up waits again, in its old place; says how many."""
    changed = session.execute(
        update(OutboxRow)
        .where(OutboxRow.state == "dead", OutboxRow.channel == channel)
        .values(state="waiting", next_attempt_at=now, attempts=0)
    )
    return _count(changed)


def muted_alerts(session: Session, alert_ids: Collection[str]) -> set[str]:
    query = select(AlertRow.id).where(AlertRow.id.in_(alert_ids), AlertRow.state == "muted")
    return set(session.scalars(query))


def counts(session: Session) -> dict[str, dict[str, int]]:
    """Rows of each channel by state."""
    query = select(OutboxRow.channel, OutboxRow.state, func.count())
    found: dict[str, dict[str, int]] = {}
    for name, state, count in session.execute(query.group_by(OutboxRow.channel, OutboxRow.state)):
        found.setdefault(name, {})[state] = count
    return found


def dead(session: Session, channel: str, limit: int = 100) -> Sequence[OutboxRow]:
    """What never arrived, the newest first."""
    query = select(OutboxRow).where(OutboxRow.state == "dead", OutboxRow.channel == channel)
    return session.scalars(query.order_by(OutboxRow.created_at.desc()).limit(limit)).all()


def _these(ids: Collection[str]) -> Any:
    return update(OutboxRow).where(OutboxRow.id.in_(ids), OutboxRow.state == "waiting")


def _count(result: object) -> int:
    return cast(CursorResult[Any], result).rowcount
