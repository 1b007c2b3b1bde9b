"""What several processes have measured of their parts, put together.

Each process measures its own part of a batch and counts steps for itself. A number of all of them
is made only at steps of which every process has told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from trainsanity.epoch_mean import EpochMean, EpochMeans
from trainsanity.replica_rows import SIZE, way_of
from trainsanity.tape import TapeRows
from trainsanity.wire import Block

MOST_STEPS = 8192  # that wait for slower processes
EPOCH = "_epoch"  # column that says to which epoch a process counts a step
PASS = "_pass"  # column of rows that are whole passes of validation
IN_ALL = "_in_all"  # behind the names of signals that are of all processes
ELEMENTS = "loss/elements"
# Means over rows of what has one value for each row, however long the row is.
OF_WHOLE_ROWS = ("_loss:", "loss/added")

Array = np.ndarray[Any, Any]
Series = tuple[Array, Array]  # steps and values, both of shape (n,)
_NONE: Series = (np.empty(0, np.int64), np.empty(0))


class AllProcesses:
    """Puts rows of all processes together, step by step; base of what is made of them.

    Attributes:
        known: steps that were put together so far.
        parted: the processes count a step to different epochs; nothing is put together from there
            on.
    """

    def __init__(self, processes: int) -> None:
        self.known = 0
        self.parted = False
        self._parts: list[dict[str, Series]] = [{} for _ in range(processes)]

    def add(self, process: int, blocks: Iterable[Block]) -> None:
        part = self._parts[process]
        for block in blocks:
            for name, values in zip(block.names, block.values, strict=True):
                part[name] = _after(_joined(part.get(name, _NONE), (block.steps, values)))

    def together(self) -> Iterator[tuple[Array, Mapping[str, Array]]]:
        """Steps and columns of all processes that are new."""
        reached = min(_last(part) for part in self._parts)
        parts = [_cut(part, reached) for part in self._parts]
        if self.parted or any(SIZE not in part or EPOCH not in part for part in parts):
            return
        steps, sizes = _at_common_steps(parts, SIZE)
        epochs = _of(parts, EPOCH, steps)
        differ = np.flatnonzero((epochs != epochs[0]).any(axis=0))
        if len(differ):
            self.parted = True
            steps, sizes, epochs = (a[..., : differ[0]] for a in (steps, sizes, epochs))
        self.known += len(steps)
        found = _put_together(parts, steps, sizes)
        for epoch in np.unique(epochs[0]):
            yield from self._of_epoch(int(epoch), steps[epochs[0] == epoch], found)

    def _of_epoch(
        self, epoch: int, steps: Array, found: Mapping[str, Series]
    ) -> Iterator[tuple[Array, Mapping[str, Array]]]:
        """What is made of new steps of one epoch."""
        raise NotImplementedError


class AllBatches(AllProcesses):
    """Training batches, or those of a stand-alone `evaluate`."""

    def __init__(self, processes: int, probes: Iterable[EpochMeans]) -> None:
        super().__init__(processes)
        self._means = [(probe, EpochMean()) for probe in probes]
        self._epoch = -1
        self._next = 1  # step with which the sums of the epoch go on
        self._is_whole = True  # no step of the epoch is missing in them

    def _of_epoch(
        self, epoch: int, steps: Array, found: Mapping[str, Series]
    ) -> Iterator[tuple[Array, Mapping[str, Array]]]:
        if epoch != self._epoch:
            self._epoch, self._is_whole = epoch, True
            for _, mean in self._means:
                mean.reset()
        gaps = np.diff(steps, prepend=self._next - 1) != 1
        self._is_whole, self._next = self._is_whole and not gaps.any(), int(steps[-1]) + 1
        whole: dict[str, Array] = {}
        for name, (at, values) in found.items():
            is_here = (at >= steps[0]) & (at <= steps[-1])
            if is_here.sum() == len(steps):
                whole[name] = values[is_here]
            elif is_here.any() and not name.startswith("_"):
                yield at[is_here], {name + IN_ALL: values[is_here]}
        shown = {name: values for name, values in whole.items() if not name.startswith("_")}
        shown |= self._since_begin(steps, whole)
        yield steps, {name + IN_ALL: values for name, values in shown.items()}

    def _since_begin(self, steps: Array, columns: dict[str, Array]) -> dict[str, Array]:
        """What probes make of sums; nothing where a batch of the epoch is missing in them."""
        made: dict[str, Array] = {}
        if self._is_whole:
            for probe, mean in self._means:
                made.update(probe.columns(TapeRows(steps, columns), mean))
        return made


def blocks_of(rows: TapeRows, epoch: int, *, mark: str | None = None) -> list[Block]:
    """What a process tells of its rows: what can be put together with those of others.

    Args:
        mark: name of a column that marks them.
    """
    named = {name: values for name, values in rows.columns.items() if way_of(name) is not None}
    told = {**named, EPOCH: np.full(len(rows), float(epoch))}
    if mark is not None:
        told[mark] = np.ones(len(rows))
    return [
        Block(tuple(columns), steps, np.stack([*columns.values()]).astype(np.float32))
        for steps, columns in rows.blocks(told)
        if len(steps)
    ]


def _joined(a: Series, b: Series) -> Series:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1].astype(np.float64)])


def _after(series: Series) -> Series:
    """The last steps of it, so that nobody's silence takes memory."""
    return series[0][-MOST_STEPS:], series[1][-MOST_STEPS:]


def _last(part: Mapping[str, Series]) -> int:
    steps, _ = part.get(SIZE, _NONE)
    return int(steps[-1]) if len(steps) else -1


def _cut(part: dict[str, Series], reached: int) -> dict[str, Series]:
    """Takes what was measured up to a step out of it."""
    taken = {}
    for name, (steps, values) in part.items():
        at = int(np.searchsorted(steps, reached, side="right"))
        if at:
            taken[name] = steps[:at], values[:at]
        part[name] = steps[at:], values[at:]
    return taken


def _at_common_steps(parts: list[dict[str, Series]], name: str) -> tuple[Array, Array]:
    """Steps at which all processes have measured it, and values of shape (processes, n)."""
    steps = parts[0][name][0]
    for part in parts[1:]:
        steps = np.intersect1d(steps, part[name][0], assume_unique=True)
    return steps, _of(parts, name, steps)


def _of(parts: list[dict[str, Series]], name: str, steps: Array) -> Array:
    return np.stack([part[name][1][np.searchsorted(part[name][0], steps)] for part in parts])


def _put_together(parts: list[dict[str, Series]], steps: Array, sizes: Array) -> dict[str, Series]:
    """Every column that all processes have measured, at the steps at which they have."""
    found: dict[str, Series] = {}
    for name in parts[0]:
        way = way_of(name)
        if way is None or any(name not in part for part in parts):
            continue
        at, values = _at_common_steps(parts, name)
        is_sized = np.isin(at, steps)
        at, values = at[is_sized], values[:, is_sized]
        rows = sizes[:, np.searchsorted(steps, at)]
        result = WAYS[way](values, rows)
        if way == "rows" and not name.startswith(OF_WHOLE_ROWS):
            result[~_alike_rows(parts, at, rows)] = np.nan
        found[name] = at, result
    return found


def _alike_rows(parts: list[dict[str, Series]], steps: Array, rows: Array) -> Array:
    """Whether a row has as many positions in all processes, so that a mean of positions is one of
    rows; by the elements of the loss.
    """
    if any(not np.isin(steps, part.get(ELEMENTS, _NONE)[0]).all() for part in parts):
        return np.zeros(len(steps), bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = _of(parts, ELEMENTS, steps) / rows
    most = np.fmax.reduce(each, axis=0)
    return np.asarray((np.isnan(each) | (each == most)).all(axis=0))


def _sum(values: Array, rows: Array) -> Array:
    return np.asarray(np.where(rows > 0, values, 0.0).sum(axis=0))


def _mean_of_rows(values: Array, rows: Array) -> Array:
    total = np.where(rows > 0, values * rows, 0.0).sum(axis=0)
    return np.asarray(total / np.maximum(rows.sum(axis=0), 1))


def _mean_of_alike(values: Array, rows: Array) -> Array:
    return np.where((rows == rows[0]).all(axis=0), values.mean(axis=0), np.nan)


def _extreme(choose: np.ufunc) -> Callable[[Array, Array], Array]:
    def extreme(values: Array, rows: Array) -> Array:
        return np.asarray(choose.reduce(np.where(rows > 0, values, np.nan), axis=0))

    return extreme


# Way -> what makes one value (n,) of values and rows of data (parts, n).
WAYS: dict[str, Callable[[Array, Array], Array]] = {
    "sum": _sum,
    "rows": _mean_of_rows,
    "alike": _mean_of_alike,
    "min": _extreme(np.fmin),
    "max": _extreme(np.fmax),
}
