"""The first process takes what the others measure, and puts it together with its own."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainsanity import wire
from trainsanity.all_processes import MOST_STEPS, PASS, AllBatches, AllProcesses, blocks_of
from trainsanity.backends.backend import Store
from trainsanity.epoch_mean import EpochMeans
from trainsanity.link import MOST_WAITING, Link, packet_key
from trainsanity.passes import AllPasses
from trainsanity.processes import OF_THE_FIRST
from trainsanity.run import Run
from trainsanity.tape import TapeRows
from trainsanity.wire import Block, Packet

TOGETHER_SECONDS = 2.0  # after which new rows are put together
VALIDATION_OF_THE_FIRST = "validation is of the first process's part: "
FEWER_BATCHES = "not every process has measured as many batches"
FEWER_PASSES = "not every process has validated after the same steps"


class Gathering(Link):
    """The link of the first process."""

    def __init__(self, run: Run, *spoken: Any, run_id: str, probes: Iterable[EpochMeans]) -> None:
        super().__init__(run, *spoken)
        self._run_id = run_id
        probes = list(probes)
        self._batches = AllBatches(run.processes, probes)
        self._passes = AllPasses(run.processes, probes)
        self._own = 0  # batches
        self._own_passes = 0
        self._left = 0  # of them when rows were put together last
        self._last = time.monotonic()  # when that was
        self._came: deque[tuple[int, list[Block]]] = deque()
        self._next = dict.fromkeys(range(1, run.processes), 0)  # process -> packet to come
        self._ended: dict[int, Packet] = {}  # process -> its last packet

    def add(self, rows: TapeRows, epoch: int) -> None:
        self._own += len(rows) + rows.lost
        self._batches.add(0, blocks_of(rows, epoch))

    def add_pass(self, row: TapeRows | None, epoch: int, keys: Iterable[str]) -> None:
        self._own_passes += 1
        self._passes.keys.update(keys)
        if row is not None:
            self._passes.add(0, blocks_of(row, epoch, mark=PASS))

    def together(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        if not self._is_time():
            return
        self._last, self._left = time.monotonic(), self._own
        while self._came:
            self._sort(*self._came.popleft())
        yield from self._batches.together()
        yield from self._passes.together()

    def _sort(self, process: int, blocks: Iterable[Block]) -> None:
        for block in blocks:
            rows = self._passes if PASS in block.names else self._batches
            rows.add(process, [block])

    def _is_time(self) -> bool:
        """Many rows at once cost little more than a few."""
        is_long_ago = time.monotonic() - self._last >= TOGETHER_SECONDS
        return is_long_ago or self._is_over.is_set() or self._own - self._left >= MOST_STEPS // 4

    def _enter(self, store: Store) -> None:
        store.set(self._key, self._run_id)

    def _is_done(self, store: Store, *, is_last: bool) -> bool:
        for process in self._next:
            self._take(store, process, most=math.inf if is_last else MOST_WAITING)
        return len(self._ended) == len(self._next)

    def _take(self, store: Store, process: int, most: float) -> None:
        while process not in self._ended and len(self._came) < most:
            key = packet_key(self._run_id, process, self._next[process])
            if not store.check([key]):
                return
            packet = wire.decode(store.get(key))
            store.delete_key(key)
            self._came.append((process, list(packet.blocks)))
            self._next[process] += 1
            if packet.state != "running":
                self._ended[process] = packet

    def _leave(self, store: Store) -> None:
        store.set(self._key, "")  # not deleted: somebody may be about to read it

    def _knows_others(self) -> bool:
        return any(self._next.values())

    def facts(self) -> dict[str, Any]:
        return {
            "processes": len(self._next) + 1,
            "batches": self._own,
            "together": self._batches.known,
            "passes": self._own_passes,
            "passes_together": self._passes.known,
            "others": [self._facts_of(process) for process in self._next],
            "not_testable": self.why_not(),
        }

    def _facts_of(self, process: int) -> dict[str, Any]:
        last = self._ended.get(process)
        return {
            "process": process,
            "heard": self._next[process] > 0,
            "batches": None if last is None else last.step,
            "passes": self._passes.told[process],
        }

    def why_not(self) -> str | None:
        batches, passes = self._batches, self._passes
        reasons = []
        if batches.known < self._own:
            cause = self._cause(batches, FEWER_BATCHES)
            reasons.append(OF_THE_FIRST + cause + _known(batches, self._own, "batches"))
        if passes.known < self._own_passes:
            cause = self._cause(passes, FEWER_PASSES)
            reasons.append(
                VALIDATION_OF_THE_FIRST + cause + _known(passes, self._own_passes, "passes")
            )
        return "; ".join(reasons) or None

    def _cause(self, rows: AllProcesses, otherwise: str) -> str:
        silent = [process for process, packets in self._next.items() if not packets]
        if self.trouble:
            return f"the store of the process group has failed ({self.trouble})"
        if rows.parted:
            return "the epochs of the processes have different numbers of batches"
        if silent:
            return (
                f"{_named(silent)} handed in nothing (no SanityCallback there, other weights when "
                "the call began, or too late)"
            )
        if any(last.state == "failed" for last in self._ended.values()):
            return "the file in which the processes have met must not grow any more"
        if unfinished := sorted(set(self._next) - set(self._ended)):
            return f"{_named(unfinished)} did not come to an end in time"
        return otherwise


def _known(rows: AllProcesses, own: int, noun: str) -> str:
    some = f"; of {rows.known:,} of {own:,} {noun} sums over all processes are known"
    return some if rows.known else ""


def _named(processes: list[int]) -> str:
    numbers = ", ".join(map(str, processes))
    return f"process {numbers}" if len(processes) == 1 else f"processes {numbers}"
