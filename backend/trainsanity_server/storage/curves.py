"""Reads signals over a range of steps, as a chart wants them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from trainsanity.wire import Block
from trainsanity_server.storage.blocks import gathered, within
from trainsanity_server.storage.buckets import Buckets, from_rows, joined, thinned
from trainsanity_server.storage.cover import BUCKET_ROWS, CHUNK_ROWS, Cover, bucket_rows
from trainsanity_server.storage.log import loose_tails
from trainsanity_server.storage.models import GroupRow
from trainsanity_server.storage.points import Series

RAW_ROWS = 16 * CHUNK_ROWS  # samples of a signal that are read for a chart that thins them
FINER = 8  # summaries that are read for one that is drawn, at most


@dataclass
class _Pieces:
    """What was found of one signal, the oldest first."""

    blocks: list[tuple[NDArray[np.int64], NDArray[Any]]] = field(default_factory=list)
    buckets: list[Buckets] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(s) for s, _ in self.blocks) + sum(int(b.rows.sum()) for b in self.buckets)


class Curves:
    """One look at some signals of a run, over a range of steps.

    Args:
        names: of the signals; None for all that have samples.
        points: numbers drawn of a signal at most; a summary draws two.
    """

    def __init__(
        self,
        session: Session,
        run_id: str,
        names: Collection[str] | None,
        first_step: int,
        last_step: int,
        points: int,
    ) -> None:
        self._session = session
        self._run_id = run_id
        self._wants_all = names is None
        self._range = first_step, last_step
        self._points = points
        self._most = max(1, points // 2)
        self._pieces = {name: _Pieces() for name in names or ()}
        self.damage: list[str] = []

    def read(self) -> list[Series]:
        for group in groups_of(self._session, self._run_id):
            self._read_chunks(group)
        for tail in loose_tails(self._session, self._run_id):
            self.damage += tail.damage
            for block in gathered(tail.blocks):
                self._keep(within(block, *self._range))
            self._sum_up()
        return [self._series(name, found) for name, found in self._pieces.items()]

    def _wants(self, name: str) -> bool:
        if self._wants_all:
            self._pieces.setdefault(name, _Pieces())
        return name in self._pieces

    def _read_chunks(self, group: GroupRow) -> None:
        signals = [i for i, name in enumerate(group.names) if self._wants(name)]
        if not signals:
            return
        names = tuple(group.names[i] for i in signals)
        cover = Cover(self._session, self._run_id, group.number, names, signals, self.damage)
        count = cover.count(*self._range)
        if count <= self._most_raw:
            self._keep(cover.block(*self._range))
            return
        parts = cover.buckets(level_for(count, self._most), *self._range)
        if not parts:
            return
        found = joined(parts)
        for i, name in enumerate(names):
            self._pieces[name].buckets.append(found.signal(i))

    @property
    def _most_raw(self) -> int:
        """Samples that are read as they are: where summaries would be too coarse or not wanted."""
        # The count of a group may be too great by two chunks.
        wanted = self._points + 2 * CHUNK_ROWS
        return max(wanted, min(RAW_ROWS, BUCKET_ROWS * self._most // 2))

    def _keep(self, block: Block) -> None:
        if not len(block.steps):
            return
        for i, name in enumerate(block.names):
            if self._wants(name):
                self._pieces[name].blocks.append((block.steps, block.values[i]))

    def _sum_up(self) -> None:
        """While much waits to be packed, memory holds summaries of what was read."""
        for found in self._pieces.values():
            if found.count > self._most_raw:
                found.buckets += [self._summaries(found, *block) for block in found.blocks]
                found.blocks = []

    def _summaries(self, found: _Pieces, steps: NDArray[np.int64], values: NDArray[Any]) -> Buckets:
        width = max(1, found.count // (FINER * self._most))
        return from_rows(steps, values[None, :], width)

    def _series(self, name: str, found: _Pieces) -> Series:
        count = found.count
        if not found.buckets and count <= self._points:
            steps, values = _samples(found)
            return Series(name, len(steps), steps=steps, values=values)
        summaries = [self._summaries(found, *block) for block in found.blocks]
        return Series(name, count, buckets=thinned(joined(found.buckets + summaries), self._most))


def level_for(count: int, most: int) -> int:
    """The finest level of which no more than `FINER × most` summaries are read."""
    level = 0
    while count > FINER * most * bucket_rows(level):
        level += 1
    return level


def _samples(found: _Pieces) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In the order of steps; where a run went back, what it measured last."""
    if not found.blocks:
        return np.empty(0, np.int64), np.empty(0)
    steps = np.concatenate([s for s, _ in found.blocks])
    values = np.concatenate([v for _, v in found.blocks])
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    is_newest = np.append(steps[1:] != steps[:-1], True)
    return steps[is_newest], values[is_newest]


def groups_of(session: Session, run_id: str) -> Sequence[GroupRow]:
    """Oldest first."""
    query = select(GroupRow).where(GroupRow.run_id == run_id).order_by(GroupRow.number)
    return session.scalars(query).all()
