"""A stored run once more, in windows of steps, as a judge would have seen it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainsanity.wire import MAX_STEP, Audit, Block
from trainsanity_server.storage import evidence
from trainsanity_server.storage.blocks import within
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.points import PointStore


@dataclass(frozen=True)
class Window:
    """All evidence up to a step that was not in an earlier window."""

    last_step: int
    blocks: Sequence[Block]
    audits: Sequence[Audit]


def windows(
    database: Database, points: PointStore, run_id: str, *, packed_seq: int | None = None
) -> Iterator[Window]:
    """A few thousand steps at a time, so that memory stays small for runs of any length.

    Args:
        packed_seq: only what came in packets before this one, all of which are in chunks.
    """
    audits = _audits(database, run_id, packed_seq)
    groups = [_Group(blocks) for blocks in points.range(run_id, tail=packed_seq is None)]
    groups = [group for group in groups if group.block is not None]
    while groups:
        edge = min(int(group.block.steps[-1]) for group in groups if group.block is not None)
        blocks = [taken for group in groups if (taken := group.take(edge)) is not None]
        due = [audit for audit in audits if audit.step <= edge]
        audits = [audit for audit in audits if audit.step > edge]
        groups = [group for group in groups if group.block is not None]
        yield Window(edge, blocks, due)
    if audits:
        yield Window(MAX_STEP, (), audits)


class _Group:
    """One group of signals, read block by block."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self.block = next(blocks, None)

    def take(self, edge: int) -> Block | None:
        """The samples up to `edge`, if there are any in the block at hand."""
        if self.block is None or self.block.steps[0] > edge:
            return None
        taken = within(self.block, 0, edge)
        rest = within(self.block, edge + 1, MAX_STEP)
        self.block = rest if len(rest.steps) else next(self._blocks, None)
        return taken


def _audits(database: Database, run_id: str, packed_seq: int | None) -> list[Audit]:
    with database.read() as session:
        rows = evidence.audits(session, run_id)
        return [
            Audit(row.name, row.step, row.facts)
            for row in rows
            if packed_seq is None or row.seq < packed_seq
        ]
