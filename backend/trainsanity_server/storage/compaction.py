"""Packs samples from packets into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from trainsanity.wire import Block
from trainsanity_server.storage.blocks import gathered
from trainsanity_server.storage.buckets import Whole, from_rows
from trainsanity_server.storage.chunk import DamagedError, pack_header, pack_rows, unpack_rows
from trainsanity_server.storage.cover import BUCKET_ROWS, CHUNK_ROWS
from trainsanity_server.storage.curves import groups_of
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.digests import forget_packets
from trainsanity_server.storage.log import read_tail
from trainsanity_server.storage.models import ChunkRow, GroupRow, RunRow
from trainsanity_server.storage.points import Tail
from trainsanity_server.storage.pyramid import build_levels
from trainsanity_server.storage.upsert import insert_or_update


@dataclass
class Group:
    """A group of signals as it will be when the compaction is done."""

    number: int
    names: tuple[str, ...]
    rows: int = 0
    last_step: int = -1
    chunks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """What a compaction writes."""

    first_seq: int
    next_seq: int
    groups: Sequence[Group]
    unreadable: Sequence[int] = ()


PACKETS_AT_ONCE = 2048


def compact(database: Database, run_id: str) -> bool:
    """Packs some of the judged packets of a run.

    The work is done outside the transaction; if two do it at the same time, one of them wins.

    Returns:
        Whether there is more to pack.
    """
    with database.snapshot() as session:
        run = session.get(RunRow, run_id)
        if run is None or run.judged_seq <= run.compacted_seq:
            return False
        limit = min(PACKETS_AT_ONCE, run.judged_seq - run.compacted_seq)
        tail = read_tail(session, run_id, run.compacted_seq, limit=limit)
        groups = _packed(session, run_id, tail)
    plan = _Plan(run.compacted_seq, tail.next_seq, groups, tail.unreadable)
    database.write(lambda s: _store(s, run_id, plan))
    return tail.next_seq < run.judged_seq


def _packed(session: Session, run_id: str, tail: Tail) -> list[Group]:
    """Groups that grow, with their new chunks."""
    newest = {
        tuple(g.names): Group(g.number, tuple(g.names), g.rows, g.last_step)
        for g in groups_of(session, run_id)
    }
    number = max((group.number for group in newest.values()), default=-1)
    grown = []
    for block in gathered(tail.blocks):
        group = newest.get(block.names)
        if group is None or block.steps[0] <= group.last_step:
            # Steps of a group increase: a run that went back begins another one.
            number += 1
            group = newest[block.names] = Group(number, block.names)
        _extend(session, run_id, group, block)
        grown.append(group)
    return grown


def _extend(session: Session, run_id: str, group: Group, block: Block) -> None:
    steps, values = block.steps, block.values
    before = _unfilled(session, run_id, group)
    if before is not None:
        steps = np.concatenate([before[0], steps])
        values = np.concatenate([before[1], values], axis=1)
    for i in range(0, len(steps), CHUNK_ROWS):
        rows = slice(i, i + CHUNK_ROWS)
        group.chunks.append(packed_chunk(run_id, group, steps[rows], values[:, rows]))
    group.rows += len(block.steps)
    group.last_step = int(block.steps[-1])


def _unfilled(session: Session, run_id: str, group: Group) -> tuple[Whole, Any] | None:
    """Samples of the last chunk, if it has room and can be read."""
    query = (
        select(ChunkRow.rows, ChunkRow.data)
        .where(ChunkRow.run_id == run_id, ChunkRow.group == group.number, ChunkRow.level == 0)
        .order_by(ChunkRow.first_step.desc())
        .limit(1)
    )
    last = session.execute(query).first()
    if last is None or last.rows >= CHUNK_ROWS:
        return None
    try:
        return unpack_rows(last.data, range(len(group.names)))
    except DamagedError:
        return None  # it stays as it is, and is told of where it is read


def packed_chunk(run_id: str, group: Group, steps: Whole, values: Any) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "group_number": group.number,
        "level": 0,
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
        "rows": len(steps),
        "header": pack_header(from_rows(steps, values, BUCKET_ROWS)),
        "data": pack_rows(steps, values),
    }


def _store(session: Session, run_id: str, plan: _Plan) -> None:
    advanced = session.execute(
        update(RunRow)
        .where(
            RunRow.id == run_id,
            RunRow.compacted_seq == plan.first_seq,
            RunRow.deleted_at.is_(None),
        )
        .values(compacted_seq=plan.next_seq)
    )
    if cast(CursorResult[Any], advanced).rowcount != 1:
        return  # another was faster, or the run is gone
    if plan.groups:
        put_groups(session, run_id, plan.groups)
        for group in plan.groups:
            build_levels(session, run_id, group.number, len(group.names))
    forget_packets(session, run_id, plan.first_seq, plan.next_seq, keep=plan.unreadable)


def put_groups(session: Session, run_id: str, groups: Sequence[Group]) -> None:
    rows = [
        {
            "run_id": run_id,
            "number": group.number,
            "names": list(group.names),
            "rows": group.rows,
            "last_step": group.last_step,
        }
        for group in groups
    ]
    session.execute(insert_or_update(session, GroupRow, "rows", "last_step"), rows)
    chunks = [chunk for group in groups for chunk in group.chunks]
    columns = ("last_step", "rows", "header", "data")
    session.execute(insert_or_update(session, ChunkRow, *columns), chunks)
