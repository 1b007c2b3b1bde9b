"""What the server asks of the place where samples lie.

`PointStore` is the seam for another engine; `SqlPointStore` keeps everything in the database.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from trainsanity.wire import MAX_STEP, Audit, Block, Packet
from trainsanity_server.storage.buckets import Buckets
from trainsanity_server.storage.packets import Arrival


@dataclass(frozen=True)
class Tail:
    """Packets from one on.

    Attributes:
        next_seq: the packet that follows them.
        bytes: of all of them.
        damage: what could not be read, for people.
        unreadable: numbers of the packets that could not be read.
    """

    packets: Sequence[Packet]
    next_seq: int
    bytes: int = 0
    damage: Sequence[str] = ()
    unreadable: Sequence[int] = ()

    @property
    def blocks(self) -> Iterator[Block]:
        return (block for packet in self.packets for block in packet.blocks)

    @property
    def audits(self) -> Iterator[Audit]:
        return (audit for packet in self.packets for audit in packet.audits)


@dataclass(frozen=True)
class Series:
    """One signal over a range of steps: the samples, or summaries where there are too many.

    Attributes:
        count: samples in the range.
        steps, values: shape (count,), or None where thinned.
        buckets: summaries of one signal, or None where not thinned.
    """

    name: str
    count: int
    steps: NDArray[np.int64] | None = None
    values: NDArray[np.float64] | None = None
    buckets: Buckets | None = None


@dataclass(frozen=True)
class Overview:
    """Some signals of a run; `damage` says what could not be read, for people."""

    series: Sequence[Series]
    damage: Sequence[str] = ()


class PointStore(Protocol):
    """Five calls: what another engine must offer."""

    def append(self, session: Session, arrivals: Sequence[Arrival]) -> None:
        """Keeps packets, in the caller's transaction."""

    def tail(self, run_id: str, first_seq: int, *, limit: int) -> Tail:
        """Packets that are not packed into chunks yet, from `first_seq` on.

        At most `limit` of them, and no more than some megabytes, but at least one.
        """

    def overview(
        self,
        run_id: str,
        names: Collection[str] | None,
        first_step: int,
        last_step: int,
        points: int,
    ) -> Overview:
        """Signals (None: all) over a range of steps, `points` numbers each; loses no extreme.

        Where there are more samples than `points`, `points // 2` summaries or fewer: each draws two
        numbers, its least and its greatest.
        """

    def range(
        self, run_id: str, first_step: int = 0, last_step: int = MAX_STEP, *, tail: bool = True
    ) -> Sequence[Iterator[Block]]:
        """All samples, group by group, each in order, a few thousand rows at a time.

        Args:
            tail: whether also those that are not packed into chunks yet.
        """

    def delete(self, run_id: str, *, limit: int) -> bool:
        """Deletes about `limit` rows; False when there is nothing left."""
