"""A stored run once more, in windows of steps, as a judge would have seen it."""

from __future__ import annotations

from collections import deque
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
    audits = _Audits(database, run_id, packed_seq)
    groups = [_Group(blocks) for blocks in points.range(run_id, tail=packed_seq is None)]
    groups = [group for group in groups if group.block is not None]
    while groups:
        edge = min(int(group.block.steps[-1]) for group in groups if group.block is not None)
        blocks = [taken for group in groups if (taken := group.take(edge)) is not None]
        groups = [group for group in groups if group.block is not None]
        yield Window(edge, blocks, audits.take(edge))
    if audits:
        yield Window(MAX_STEP, (), audits.take(MAX_STEP))


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


class _Audits:
    """The audits of a run, read when their window comes."""

    def __init__(self, database: Database, run_id: str, packed_seq: int | None) -> None:
        self._database = database
        self._run_id = run_id
        with database.read() as session:
            keys = evidence.audit_keys(session, run_id)
        packed = [key for key in keys if packed_seq is None or key.seq < packed_seq]
        self._keys = deque(sorted(packed, key=lambda key: key.step))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def take(self, edge: int) -> list[Audit]:
        """Those up to the step `edge`."""
        due = []
        while self._keys and self._keys[0].step <= edge:
            due.append(self._keys.popleft())
        with self._database.read() as session:
            rows = evidence.audits(session, self._run_id, due)
            return [Audit(row.name, row.step, row.facts) for row in rows]
