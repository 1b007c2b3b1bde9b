"""Samples in the database's own tables: a log of packets, and chunks into which it is packed.

New samples are in packets; `compaction.py` packs them into chunks. A chunk of level 0 holds
samples, and a header with a summary of every 256 of them. A row of level n holds a header only: the
totals of 16 rows of level n-1. So a chart reads about as many summaries as it draws, whatever the
run's length.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, delete, insert, select, tuple_
from sqlalchemy.orm import Session

from trainsanity.wire import MAX_STEP, Block
from trainsanity_server.storage.blocks import gathered, within
from trainsanity_server.storage.cover import Cover
from trainsanity_server.storage.curves import Curves, groups_of
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.log import loose_tails, read_tail
from trainsanity_server.storage.models import ChunkRow, DigestsRow, GroupRow, PacketRow
from trainsanity_server.storage.packets import Arrival
from trainsanity_server.storage.points import Overview, Tail


class SqlPointStore:
    """See `PointStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, session: Session, arrivals: Sequence[Arrival]) -> None:
        rows = [
            {"run_id": a.packet.run_id, "seq": a.packet.seq, "digest": a.digest, "body": a.body}
            for a in arrivals
        ]
        session.execute(insert(PacketRow.__table__), rows)

    def tail(self, run_id: str, first_seq: int, *, limit: int) -> Tail:
        with self._database.read() as session:
            return read_tail(session, run_id, first_seq, limit=limit)

    def overview(
        self,
        run_id: str,
        names: Collection[str] | None,
        first_step: int,
        last_step: int,
        points: int,
    ) -> Overview:
        with self._database.snapshot() as session:
            curves = Curves(session, run_id, names, first_step, last_step, points)
            return Overview(curves.read(), curves.damage)

    def range(
        self, run_id: str, first_step: int = 0, last_step: int = MAX_STEP, *, tail: bool = True
    ) -> Sequence[Iterator[Block]]:
        with self._database.snapshot() as session:
            groups = groups_of(session, run_id)
            loose = (
                [b for t in loose_tails(session, run_id) for b in gathered(t.blocks)]
                if tail
                else []
            )
        # Up to where a group is now: what is compacted meanwhile is in the tail already.
        chunks = [self._chunks(g, first_step, min(last_step, g.last_step)) for g in groups]
        new = [within(block, first_step, last_step) for block in loose]
        return [*chunks, *(iter([block]) for block in new if len(block.steps))]

    def _chunks(self, group: GroupRow, first_step: int, last_step: int) -> Iterator[Block]:
        names = tuple(group.names)
        while first_step <= last_step:
            with self._database.read() as session:
                cover = Cover(session, group.run_id, group.number, names, range(len(names)))
                end = cover.end_of_chunk(first_step, last_step)
                block = cover.block(first_step, end)
            first_step = end + 1
            if len(block.steps):
                yield block

    def delete(self, run_id: str, *, limit: int) -> bool:
        return self._database.write(lambda session: _delete_some(session, run_id, limit))


def _delete_some(session: Session, run_id: str, limit: int) -> bool:
    chunk_key = tuple_(ChunkRow.group, ChunkRow.level, ChunkRow.first_step)
    chunks = select(ChunkRow.group, ChunkRow.level, ChunkRow.first_step)
    doomed = chunks.where(ChunkRow.run_id == run_id).limit(limit)
    packets = select(PacketRow.seq).where(PacketRow.run_id == run_id).limit(limit)
    deleted = [
        session.execute(delete(ChunkRow).where(ChunkRow.run_id == run_id, chunk_key.in_(doomed))),
        session.execute(
            delete(PacketRow).where(PacketRow.run_id == run_id, PacketRow.seq.in_(packets))
        ),
    ]
    if any(cast(CursorResult[Any], result).rowcount for result in deleted):
        return True
    session.execute(delete(GroupRow).where(GroupRow.run_id == run_id))
    session.execute(delete(DigestsRow).where(DigestsRow.run_id == run_id))
    return False
