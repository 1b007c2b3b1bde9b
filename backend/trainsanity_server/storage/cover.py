"""Reads a range of steps of one group of signals, no finer than asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from trainsanity.wire import Block
from trainsanity_server.storage.blocks import within
from trainsanity_server.storage.buckets import Buckets, from_rows
from trainsanity_server.storage.chunk import DamagedError, unpack_header, unpack_rows
from trainsanity_server.storage.models import ChunkRow

CHUNK_ROWS = 4096  # samples of each signal in a chunk
BUCKET_ROWS = 256  # samples in one summary of level 0
FAN_OUT = 16  # rows of one level under a row of the next


def bucket_rows(level: int) -> int:
    """Samples in one summary that a row of this level holds."""
    return BUCKET_ROWS * int(FAN_OUT**level)


@dataclass
class Cover:
    """The chunks of one group.

    Attributes:
        names: of the signals that are read, and `signals` their places in the group.
        damage: what could not be read, for people; grows while reading.
    """

    session: Session
    run_id: str
    group: int
    names: tuple[str, ...]
    signals: Sequence[int]
    damage: list[str] = field(default_factory=list)

    def count(self, first_step: int, last_step: int) -> int:
        """Samples of a signal in the range, and up to two chunks more."""
        query = self._rows(0, first_step, last_step, func.coalesce(func.sum(ChunkRow.rows), 0))
        return int(self.session.scalar(query.order_by(None)) or 0)

    def block(self, first_step: int, last_step: int) -> Block:
        """The samples themselves."""
        found = self._rows(
            0, first_step, last_step, ChunkRow.first_step, ChunkRow.last_step, ChunkRow.data
        )
        pieces = [self._unpacked(row) for row in self.session.execute(found)]
        steps = np.concatenate([np.empty(0, np.int64), *(s for s, _ in pieces)])
        values = np.concatenate([np.empty((len(self.names), 0)), *(v for _, v in pieces)], axis=1)
        return within(Block(self.names, steps, values), first_step, last_step)

    def end_of_chunk(self, first_step: int, last_step: int) -> int:
        """Last step of the chunk in which, or after which, the range begins."""
        ends = self._rows(0, first_step, last_step, ChunkRow.last_step).limit(1)
        end = self.session.scalar(ends)
        return last_step if end is None else min(int(end), last_step)

    def buckets(self, level: int, first_step: int, last_step: int) -> list[Buckets]:
        """Summaries of the range: of this level, and finer ones at its ends and where it is new."""
        if first_step > last_step:
            return []
        parts: list[Buckets] = []
        query = self._rows(
            level, first_step, last_step, ChunkRow.first_step, ChunkRow.last_step, ChunkRow.header
        )
        covered = first_step - 1
        for row in self.session.execute(query):
            parts += self._of_row(level, row, first_step, last_step)
            covered = row.last_step
        if level > 0:
            parts += self.buckets(level - 1, max(first_step, covered + 1), last_step)
        return parts

    def _of_row(self, level: int, row: Row[Any], first_step: int, last_step: int) -> list[Buckets]:
        try:
            found = unpack_header(row.header, self.signals)
        except DamagedError:
            # What lies below has its own checksums.
            return self._finer(
                level, max(first_step, row.first_step), min(last_step, row.last_step)
            )
        is_inside = (found.first_step >= first_step) & (found.last_step <= last_step)
        if is_inside.all():
            return [found]
        is_outside = (found.first_step > last_step) | (found.last_step < first_step)
        parts = [found[is_inside]]
        for at in np.flatnonzero(~is_inside & ~is_outside):
            start, end = int(found.first_step[at]), int(found.last_step[at])
            parts += self._finer(level, max(first_step, start), min(last_step, end))
        return parts

    def _finer(self, level: int, first_step: int, last_step: int) -> list[Buckets]:
        if level > 0:
            return self.buckets(level - 1, first_step, last_step)
        block = self.block(first_step, last_step)
        return [from_rows(block.steps, block.values, BUCKET_ROWS)] if len(block.steps) else []

    def _unpacked(self, row: Row[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        try:
            return unpack_rows(row.data, self.signals)
        except DamagedError as error:
            self.damage.append(
                f"samples of steps {row.first_step} to {row.last_step} cannot be read: {error}"
            )
            return np.empty(0, np.int64), np.empty((len(self.names), 0))

    def _rows(self, level: int, first_step: int, last_step: int, *columns: Any) -> Select[Any]:
        """Rows of a level that overlap the range, in order."""
        own = (
            ChunkRow.run_id == self.run_id,
            ChunkRow.group == self.group,
            ChunkRow.level == level,
        )
        # The row in which the range begins; an equation on the key, so nothing before it is read.
        start = select(func.max(ChunkRow.first_step)).where(*own, ChunkRow.first_step <= first_step)
        return (
            select(*columns)
            .where(
                *own,
                ChunkRow.first_step >= func.coalesce(start.scalar_subquery(), first_step),
                ChunkRow.first_step <= last_step,
                ChunkRow.last_step >= first_step,
            )
            .order_by(ChunkRow.first_step)
        )
