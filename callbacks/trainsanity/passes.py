"""Passes of validation inside `fit`, of which several processes have each a part.

The parts may have different numbers of batches. So a process hands in one row for its whole pass,
as if it were one batch, at the training step after which the pass ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from trainsanity.all_processes import IN_ALL, OF_WHOLE_ROWS, WAYS, AllProcesses, Array, Series
from trainsanity.epoch_mean import VARIANTS, EpochMean, EpochMeans
from trainsanity.replica_rows import SIZE, way_of
from trainsanity.tape import TapeRows
from trainsanity.wire import Block

OF_VALIDATION = "val_"  # before the names that Keras gives to what a pass shows


class Pass:
    """What one process measures of its part of a pass, as one row."""

    def __init__(self) -> None:
        self._columns: dict[str, Array] | None = None  # over all batches so far, of shape (1,)
        self._is_known = True

    def add(self, rows: TapeRows | None) -> None:
        """Further batches; None where they could not be read."""
        if rows is None or rows.lost:
            self._is_known = False
        elif len(rows):
            self._add({n: v for n, v in rows.columns.items() if n not in rows.gaps})

    def _add(self, batches: Mapping[str, Array]) -> None:
        columns = {name: values for name, values in batches.items() if _adds_up(name)}
        if self._columns is not None:
            columns = {
                name: np.concatenate([before, columns[name]])
                for name, before in self._columns.items()
                if name in columns
            }
        sizes = columns.get(SIZE)
        if sizes is None:
            self._is_known = False
            return
        self._columns = {
            name: WAYS[str(way_of(name))](values[:, None], sizes[:, None])
            for name, values in columns.items()
        }

    def row(self, step: int) -> TapeRows | None:
        """The pass that ran after a training step; None where a batch of it is not known."""
        if self._columns is None or not self._is_known:
            return None
        return TapeRows(np.array([step], np.int64), self._columns)


class AllPasses(AllProcesses):
    """Passes of all processes.

    Attributes:
        keys: what the first process shows of its passes.
        told: passes that each process has handed in.
    """

    def __init__(self, processes: int, probes: Iterable[EpochMeans]) -> None:
        super().__init__(processes)
        self.keys: set[str] = set()
        self.told = [0] * processes
        self._probes = list(probes)
        self._newest = [-1] * processes  # step after which a pass has run

    def add(self, process: int, blocks: Iterable[Block]) -> None:
        """Of several passes after one step the first counts."""
        for block in blocks:
            step = int(block.steps[0])
            if step > self._newest[process]:
                self._newest[process] = step
                self.told[process] += 1
                super().add(process, [block])

    def _of_epoch(
        self, epoch: int, steps: Array, found: Mapping[str, Series]
    ) -> Iterator[tuple[Array, Mapping[str, Array]]]:
        for step in steps:
            whole = {name: values[at == step] for name, (at, values) in found.items() if step in at}
            yield np.array([step]), self._shown(TapeRows(np.array([step]), whole))

    def _shown(self, row: TapeRows) -> dict[str, Array]:
        """Witnesses of what the first process shows, by the names of signals."""
        made: dict[str, Array] = {}
        for probe in self._probes:
            made.update(probe.columns(row, EpochMean()))
        return {
            f"{OF_VALIDATION}{name}{IN_ALL}": values
            for name, values in made.items()
            if is_witness(name, self.keys)
        }


def is_witness(name: str, keys: Iterable[str]) -> bool:
    """Whether a signal is a mean over a pass, of what is shown under one of these keys."""
    quantity, _, witness = name.rpartition("/")
    return witness in VARIANTS and quantity in keys


def _adds_up(name: str) -> bool:
    """Whether a column of a whole pass can be made of those of its batches."""
    return way_of(name) == "sum" or name.startswith(OF_WHOLE_ROWS)
