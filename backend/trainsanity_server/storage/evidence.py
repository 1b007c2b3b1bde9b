"""Rows that say what a run measured, other than the samples: signals and audits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from trainsanity_server.storage.models import AuditRow, SignalRow

AT_ONCE = 200  # rows fetched by one query


@dataclass(frozen=True)
class AuditKey:
    """Where an audit is, and how large."""

    seq: int
    number: int
    step: int
    size: int  # bytes


def audit_keys(session: Session, run_id: str, *, names: Collection[str] = ()) -> list[AuditKey]:
    """Of these names, or of all where none is given, in the order in which they arrived."""
    size = func.length(AuditRow.facts)  # the text is ASCII
    query = select(AuditRow.seq, AuditRow.number, AuditRow.step, size)
    query = query.where(AuditRow.run_id == run_id)
    if names:
        # PostgreSQL takes no NUL, not even to look for; no name has one.
        query = query.where(AuditRow.name.in_([name for name in names if "\0" not in name]))
    rows = session.execute(query.order_by(AuditRow.seq, AuditRow.number))
    return [AuditKey(*row) for row in rows]


def audits(session: Session, run_id: str, keys: Sequence[AuditKey]) -> Iterator[AuditRow]:
    """The audits of these keys, in the order of the keys."""
    for i in range(0, len(keys), AT_ONCE):
        some = [(key.seq, key.number) for key in keys[i : i + AT_ONCE]]
        query = select(AuditRow).where(
            AuditRow.run_id == run_id, tuple_(AuditRow.seq, AuditRow.number).in_(some)
        )
        found = {(row.seq, row.number): row for row in session.scalars(query)}
        yield from (found[key] for key in some if key in found)


def first_and_newest(
    keys: Sequence[AuditKey], *, most: int, most_bytes: int
) -> tuple[Sequence[AuditKey], int]:
    """Keys that are few and small enough, and how many were left out in the middle.

    A quarter of the room is for the first: what was measured when the run began.
    """
    head = _fitting(keys, most // 4, most_bytes // 4)
    rest = keys[head:]
    tail = _fitting(rest[::-1], most - head, most_bytes - sum(key.size for key in keys[:head]))
    return [*keys[:head], *rest[len(rest) - tail :]], len(rest) - tail


def _fitting(keys: Sequence[AuditKey], most: int, most_bytes: int) -> int:
    """How many keys fit, from the first on."""
    size = 0
    for count, key in enumerate(keys):
        size += key.size
        if count == most or size > most_bytes:
            return count
    return len(keys)


def signals(session: Session, run_id: str) -> Sequence[SignalRow]:
    query = select(SignalRow).where(SignalRow.run_id == run_id)
    return session.scalars(query.order_by(SignalRow.name)).all()
