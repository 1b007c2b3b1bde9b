"""The durable log of packets, and what of them is kept ready: the run's row, signals, audits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import BigInteger, bindparam, case, func, insert, select, update
from sqlalchemy.orm import Session

from trainsanity.wire import Packet
from trainsanity_server.storage.digests import digest_of
from trainsanity_server.storage.models import AuditRow, RunRow, SignalRow
from trainsanity_server.storage.upsert import insert_or_ignore, insert_or_update

What = Literal["stored", "duplicate", "conflict", "gone"]
ENDED = ("finished", "failed")


@dataclass(frozen=True)
class Arrival:
    """A packet that wants to be stored.

    Attributes:
        header: columns of the run that the packet fills; empty for most packets.
        digest: of the body, 16 bytes.
    """

    packet: Packet
    header: Mapping[str, Any]
    body: bytes
    digest: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of an arrival, and the run's state after it.

    Attributes:
        is_news: the run is new, changed its state or its header.
    """

    what: What
    next_seq: int = 0
    judged_seq: int = 0
    alert_cursor: int = 0
    state: str = "running"
    is_news: bool = False

    @property
    def is_settled(self) -> bool:
        return self.state in ENDED and self.judged_seq == self.next_seq


@dataclass
class _Run:
    """One run while a batch is stored."""

    id: str
    next_seq: int
    judged_seq: int
    alert_cursor: int
    state: str
    is_deleted: bool
    accepted: list[Arrival] = field(default_factory=list)

    def outcome(self, what: What, *, is_news: bool = False) -> Outcome:
        return Outcome(what, self.next_seq, self.judged_seq, self.alert_cursor, self.state, is_news)


Append = Callable[[Session, Sequence[Arrival]], None]


def store(
    session: Session, arrivals: Sequence[Arrival], now: float, *, append: Append
) -> list[Outcome]:
    """Stores what fits, in order.

    Args:
        append: keeps the packets themselves.

    Returns:
        In the order of the arrivals.
    """
    runs = _runs(session, arrivals, now)
    outcomes = [_place(session, runs.get(a.packet.run_id), a) for a in arrivals]
    touched = [run for run in runs.values() if run.accepted]
    if touched:
        accepted = [arrival for run in touched for arrival in run.accepted]
        append(session, accepted)
        _insert_signals(session, accepted)
        _insert_audits(session, accepted)
        _update_runs(session, touched, now)
    return outcomes


def _runs(session: Session, arrivals: Sequence[Arrival], now: float) -> dict[str, _Run]:
    ids = sorted({a.packet.run_id for a in arrivals})  # sorted: two servers lock in one order
    runs = {run.id: run for run in _locked(session, ids)}
    begun = sorted({a.packet.run_id for a in arrivals if a.packet.seq == 0} - runs.keys())
    if begun:
        rows = [{"id": run_id, "started_at": now, "last_seen_at": now} for run_id in begun]
        session.execute(insert_or_ignore(session, RunRow), rows)
        runs.update({run.id: run for run in _locked(session, begun)})
    return runs


_HEADS = select(
    RunRow.id,
    RunRow.next_seq,
    RunRow.judged_seq,
    RunRow.alert_cursor,
    RunRow.state,
    RunRow.deleted_at.is_not(None),
).order_by(RunRow.id)


def _locked(session: Session, ids: Sequence[str]) -> list[_Run]:
    """Rows that no other server changes until this transaction ends."""
    query = _HEADS.where(RunRow.id.in_(ids)).with_for_update()
    return [_Run(*row) for row in session.execute(query)]


def _place(session: Session, run: _Run | None, arrival: Arrival) -> Outcome:
    packet = arrival.packet
    if run is None:
        return Outcome("conflict")
    if run.is_deleted:
        return run.outcome("gone")
    if packet.seq > run.next_seq:
        return run.outcome("conflict")
    if packet.seq < run.next_seq:
        same = _digest(session, run, packet.seq) == arrival.digest
        return run.outcome("duplicate" if same else "conflict")
    is_news = bool(run.state != packet.state or arrival.header)
    run.next_seq, run.state = packet.seq + 1, packet.state
    run.accepted.append(arrival)
    return run.outcome("stored", is_news=is_news)


def _digest(session: Session, run: _Run, seq: int) -> bytes | None:
    for arrival in run.accepted:
        if arrival.packet.seq == seq:
            return arrival.digest
    return digest_of(session, run.id, seq)


def _insert_signals(session: Session, arrivals: Sequence[Arrival]) -> None:
    rows = {
        (a.packet.run_id, s.name): {
            "run_id": a.packet.run_id,
            "name": s.name,
            "unit": s.unit,
            "label": s.label,
        }
        for a in arrivals
        for s in a.packet.signals
    }
    if rows:
        statement = insert_or_update(session, SignalRow, "unit", "label")
        session.execute(statement, list(rows.values()))


def _insert_audits(session: Session, arrivals: Sequence[Arrival]) -> None:
    rows = [
        {
            "run_id": a.packet.run_id,
            "seq": a.packet.seq,
            "number": number,
            "name": audit.name,
            "step": audit.step,
            "facts": audit.facts,
        }
        for a in arrivals
        for number, audit in enumerate(a.packet.audits)
    ]
    if rows:
        session.execute(insert(AuditRow.__table__), rows)


_NEW_STEP = bindparam("new_step", type_=BigInteger)
_ADVANCE = (
    update(RunRow)
    .where(RunRow.id == bindparam("run"))
    .values(
        next_seq=bindparam("new_seq"),
        state=bindparam("new_state"),
        step=case((RunRow.step < _NEW_STEP, _NEW_STEP), else_=RunRow.step),
        points=RunRow.points + bindparam("new_points"),
        last_seen_at=bindparam("now"),
        last_sent_at=bindparam("sent"),
        ended_at=bindparam("new_end"),
        silent_after=bindparam("promise"),
        alarm_after=bindparam("alarm"),
        judge_due_at=func.coalesce(RunRow.judge_due_at, bindparam("now")),
        version=RunRow.version + 1,
    )
)


def _update_runs(session: Session, runs: Sequence[_Run], now: float) -> None:
    session.connection().execute(_ADVANCE, [_advance(run, now) for run in runs])
    for run in runs:
        header = {key: value for a in run.accepted for key, value in a.header.items()}
        if header:
            session.execute(update(RunRow).where(RunRow.id == run.id).values(**header))


def _advance(run: _Run, now: float) -> dict[str, Any]:
    last = run.accepted[-1].packet
    has_ended = last.state in ENDED
    return {
        "run": run.id,
        "new_seq": run.next_seq,
        "new_state": last.state,
        "new_step": max(a.packet.step for a in run.accepted),
        "new_points": sum(a.packet.points for a in run.accepted),
        "now": now,
        "sent": last.time,
        "new_end": last.time if has_ended else None,
        "promise": last.silent_after,
        "alarm": None if has_ended else now + last.silent_after,
    }
