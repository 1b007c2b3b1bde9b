"""The other processes hand what they measure to the first one, if it asks for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from trainsanity import wire
from trainsanity.all_processes import PASS, blocks_of
from trainsanity.backends.backend import Store
from trainsanity.errors import log
from trainsanity.link import MOST_WAITING, Link, packet_key
from trainsanity.run import Run
from trainsanity.tape import TapeRows
from trainsanity.wire import Block, Packet

WINDOW = 8  # packets of one process that wait in the store, where the first one does not take them
MOST_POINTS = 100_000  # numbers in a packet, after which nothing more is put into it
UNASKED = "process 0, which reports for all, has no SanityCallback, or other weights"

# Ids of runs to which a session of this process has handed in already.
_served: set[str] = set()


class HandingIn(Link):
    """The link of every process but the first."""

    def __init__(self, run: Run, *spoken: Any, process: int) -> None:
        super().__init__(run, *spoken)
        self._process = process
        self._waiting: deque[tuple[int, list[Block]]] = deque(maxlen=MOST_WAITING)
        self._batches = 0
        self._run_id = ""  # of the first process's run, as far as it is known
        self._is_asked = False  # by that run
        self._seq = 0
        self._bytes = 0  # handed in

    def add(self, rows: TapeRows, epoch: int) -> None:
        self._batches += len(rows) + rows.lost
        self._waiting.append((self._batches, blocks_of(rows, epoch)))

    def add_pass(self, row: TapeRows | None, epoch: int, keys: Iterable[str]) -> None:
        if row is not None:
            self._waiting.append((self._batches, blocks_of(row, epoch, mark=PASS)))

    def _is_done(self, store: Store, *, is_last: bool) -> bool:
        self._is_asked = self._is_asked or self._asks(store)
        if not self._is_asked:
            return False
        while self._waiting and self._is_wanted(store):
            if self._bytes > self._place.most_bytes:
                self._hand_in(store, self._batches, "failed")
                return True
            batches, blocks = self._waited()
            self._hand_in(store, batches, "running", blocks)
        if is_last and not self._waiting and self._is_wanted(store):
            self._hand_in(store, self._batches, "finished")
            return True
        return False

    def _waited(self) -> tuple[int, list[Block]]:
        """What has waited, as far as one packet should hold it: short epochs and passes come by the
        dozen.
        """
        batches, blocks = self._waiting.popleft()
        while self._waiting and sum(block.points for block in blocks) < MOST_POINTS:
            batches, more = self._waiting.popleft()
            blocks = [*blocks, *more]
        return batches, blocks

    def _asks(self, store: Store) -> bool:
        """Whether the first process has begun a run of this model and taken a greeting from here:
        what it has left of an earlier run must not be taken for one.
        """
        run_id = store.get(self._key).decode() if store.check([self._key]) else ""
        if run_id and run_id not in _served:
            _served.add(run_id)
            self._run_id, self._seq = run_id, 0
            self._hand_in(store, 0, "running")
        greeting = packet_key(self._run_id, self._process, 0)
        return bool(self._run_id) and not store.check([greeting])

    def _is_wanted(self, store: Store) -> bool:
        """Whether the first process takes what it is given; the store must not fill up."""
        early = self._seq - WINDOW
        return early < 0 or not store.check([packet_key(self._run_id, self._process, early)])

    def _hand_in(
        self, store: Store, batches: int, state: str, blocks: Sequence[Block] = ()
    ) -> None:
        packet = Packet(self._run_id, self._seq, time.time(), batches, state, blocks=blocks)
        data = wire.encode(packet)
        store.set(packet_key(self._run_id, self._process, self._seq), data)
        self._seq += 1
        self._bytes += len(data)

    def finish(self) -> None:
        super().finish()
        if not self._is_asked:
            log.warning("training was not watched here: %s", UNASKED)

    def _knows_others(self) -> bool:
        return self._is_asked
