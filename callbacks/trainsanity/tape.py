"""The tape: a ring buffer on the device into which the compiled step writes one row per batch.

It is a Keras metric within one of the model's, so that on JAX Keras itself carries its variables
through the stateless step, while the list of metrics, logs, history and saved files never show it.
Elsewhere the step writes to the variables directly and the model never hears of it. The host reads
the ring once in many batches; therefore every batch is seen, also with `steps_per_execution`,
without a wait per step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity.backends.backend import HOST_OPS, Backend, OnHost

COPY_SECONDS = 1.4  # between two copies of the ring, where it cannot be read in an epoch

# On the tape where nothing can be said; NaN itself would trip debuggers of NaN. The host makes NaN
# of it.
NOTHING = float(np.float32(-1.0000123e30))
# Where a trace does not write a column that another one does, as after a probe has failed.
GAP = float(np.float32(-1.0000246e30))
FLUSHED = "_flushed"  # column that says of which row those from inside the gradient are
MARKS = 2**20  # rows, after which the same mark comes again


class Tape(keras.metrics.Metric):  # type: ignore[misc] # Keras is Any to mypy
    """A `(depth, width)` float32 ring and the number of rows ever written.

    Args:
        backend: what the backend that Keras runs on offers.
        depth: rows kept; older ones are overwritten. The host reads a quarter of them at once.
        width: columns; the names are given to them while the step is traced.

    Attributes:
        make: makes rows of what was to be written later, as `HostRing.write_later` takes it, with
            names in place of places.
        on_host: what the host makes of several cells: column name -> function and number of cells
            -> names of the cells.
    """

    def __init__(self, backend: Backend, depth: int, width: int) -> None:
        super().__init__(name="trainsanity_tape", dtype="float32")
        self.depth = depth
        self.width = width
        self._backend = backend
        self.names: dict[str, int] = {}  # column name -> index; the same for every trace
        self.without_place: set[str] = set()  # columns, or cells of them
        self.flushed: set[str] = set()  # columns that come from inside the gradient
        self.ring = self.add_variable((depth, width), backend.zeros, dtype="float32", name="ring")
        self.count = self.add_variable((), backend.zeros, dtype="int32", name="count")
        self.pending: Any = None
        self.on_host: dict[str, dict[tuple[Callable[..., Any], int], tuple[str, ...]]] = {}
        self.make: Callable[[list[Any]], Iterable[tuple[Sequence[int], Mapping[str, Any]]]]
        self._host = backend.in_memory(self.ring, self.count, GAP)
        self._flushed_now: tuple[str, ...] = ()  # in the trace that is being made
        if backend.HAS_GRADIENT_BOUNDARY:
            self.pending = self.add_variable(
                (width,), backend.zeros, dtype="float32", name="pending"
            )

    def carry(self, variables: list[Any]) -> None:
        """Takes further variables along, so that Keras threads them through JAX's stateless step
        too.
        """
        self._variables.extend(variables)

    def flush(self, columns: Mapping[str, Any], in_turns: Set[str] = frozenset()) -> None:
        """Keeps columns for the row to come. On JAX values made inside the gradient can leave it
        only so; a step of the user's may lose them on the way, so they carry a mark.

        Args:
            in_turns: as for `write`.
        """
        cells = self._spread(columns, in_turns)
        self.flushed.update(cells)
        cells = {**cells, FLUSHED: self._mark()}
        self._flushed_now = (*cells,)
        self.pending.assign(self._backend.not_differentiated(self._row(cells, 0.0)))

    def _mark(self) -> Any:
        return ops.cast(ops.convert_to_tensor(self.count) & np.int32(MARKS - 1), "float32") + 1.0

    def _row(self, cells: Mapping[str, Any], rest: float) -> Any:
        # Numbers that are known already come last: they are one piece of the row.
        ordered = sorted(cells.items(), key=lambda item: isinstance(item[1], (int, float)))
        return self._backend.row(self._cells(dict(ordered)), self.width, rest)

    def _spread(self, columns: Mapping[str, Any], in_turns: Set[str]) -> dict[str, Any]:
        """A cell for every column, or several where the host makes one of them."""
        spread: dict[str, Any] = {}
        for name, value in self._backend.columns_made(columns).items():
            cells = {name: value}
            if isinstance(value, OnHost):
                kinds = self.on_host.setdefault(name, {})
                names = tuple(f"{name} {len(kinds)}.{i}" for i in range(len(value.cells)))
                names = kinds.setdefault((value.make, len(names)), names)
                cells = dict(zip(names, value.cells, strict=True))
            # One by one: of an element of a row no compiler sees that nothing uses it.
            spread |= {n: self._rare(v) for n, v in cells.items()} if name in in_turns else cells
        return spread

    def _rare(self, value: Any) -> Any:
        return self._backend.in_turn(ops.cast(value, "float32"), np.float32(GAP))

    def _cells(self, columns: Mapping[str, Any]) -> dict[int, Any]:
        places = ((self._index(name), value) for name, value in columns.items())
        return {place: value for place, value in places if place is not None}

    def write(self, columns: Mapping[str, Any], in_turns: Set[str] = frozenset()) -> None:
        """Writes one row. Called while the step is traced.

        Args:
            columns: scalar tensors by name.
            in_turns: those that need not be in every row.
        """
        if self._host is not None:
            self._host.write(self._cells(columns))
            return
        row = self._row(self._spread(columns, in_turns), GAP)
        if self._flushed_now:
            places = [self.names.get(name, -1) for name in self._flushed_now]
            is_flushed = np.isin(np.arange(self.width), places)
            self._flushed_now = ()  # Keras sees every new attribute, which takes its time
            row = ops.where(is_flushed, ops.convert_to_tensor(self.pending), row)
        self._backend.write_row(self.ring, self.count, row)

    @property
    def is_in_memory(self) -> bool:
        """Whether rows can be made later than their step."""
        return self._host is not None

    def write_later(self, source: Any, size: int) -> None:
        """The row that `make` makes of this when the tape is next read; where `is_in_memory`.

        Args:
            size: bytes that are kept until then.
        """
        assert self._host is not None
        self._host.write_later(self._made, source, size)

    def _made(self, sources: list[Any]) -> Iterator[tuple[Sequence[int], dict[int, Any]]]:
        for which, columns in self.make(sources):
            yield which, self._cells(columns)

    def _index(self, name: str) -> int | None:
        if name in self.names:
            return self.names[name]
        if len(self.names) == self.width:
            self.without_place.add(name)
            return None
        self.names[name] = len(self.names)
        return self.names[name]

    def rows_written(self) -> int:
        """Rows ever written, where the variables can be read."""
        if self._host is not None:
            self._host.put_in_place()
        return int(self._backend.read(self.count))

    def result(self) -> dict[str, Any]:
        return {}

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: rows come from the taps."""

    def reset_state(self) -> None:
        """Nothing: Keras resets metrics at every epoch, the tape runs on."""


def carrier_among(metrics: Iterable[Any]) -> Any:
    """The last metric with which Keras carries the variables of those within it; None where there
    is none.
    """
    common = keras.metrics.Metric.variables
    return next((m for m in reversed([*metrics]) if type(m).variables is common), None)


def variables_of(metric: Any) -> list[Any]:
    """Of a metric, without those of tapes that it carries."""
    tapes = [inner for inner in getattr(metric, "_metrics", ()) if isinstance(inner, Tape)]
    ours = {id(variable) for tape in tapes for variable in tape.variables}
    return [variable for variable in metric.variables if id(variable) not in ours]


@dataclass(frozen=True)
class TapeRows:
    """Rows read from the tape: `steps` (n,) and float64 columns (n,) by name.

    Attributes:
        gaps: columns that some of the rows do not have -> which; those are NaN in the column.
        lost: rows overwritten before they were read.
        without_place: columns, or cells of them, for which the tape is not wide enough.
    """

    steps: np.ndarray[Any, np.dtype[np.int64]]
    columns: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    gaps: Mapping[str, np.ndarray[Any, np.dtype[np.bool_]]] = field(default_factory=dict)
    lost: int = 0
    without_place: Set[str] = frozenset()

    def __len__(self) -> int:
        return len(self.steps)

    def blocks(self, columns: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Steps and columns of what was measured at the same steps, without the gaps."""
        alike: dict[bytes, dict[str, Any]] = {}
        for name, values in columns.items():
            gap = self.gaps.get(name)
            alike.setdefault(b"" if gap is None else gap.tobytes(), {})[name] = values
        for pattern, block in alike.items():
            if not pattern:
                yield self.steps, block
                continue
            there = ~np.frombuffer(pattern, np.bool_)
            yield self.steps[there], {name: values[there] for name, values in block.items()}


_NO_ROWS = TapeRows(np.empty(0, np.int64), {})


class TapeReader:
    """Reads what is new on a tape.

    Attributes:
        step: rows read or given up so far that belong to the watched call.
    """

    def __init__(self, tape: Tape, backend: Backend) -> None:
        self.tape = tape
        self._backend = backend
        self._seen = 0  # rows of the tape that have been dealt with
        self._foreign = 0  # of these, rows of calls that are not watched
        self._copies: list[tuple[Any, Any]] = []
        self._copied: float | None = None
        self._since_copy = 0

    @property
    def step(self) -> int:
        return self._seen - self._foreign

    def written(self) -> int | None:
        """Rows of the watched call that are on the tape now; None where that cannot be read in an
        epoch.
        """
        if not self._backend.READABLE_IN_EPOCH:
            return None
        return self.tape.rows_written() - self._foreign

    def note(self, model: Any, result: Any, batches: int) -> bool:
        """After an execution: copies the ring on the device where variables cannot be read in an
        epoch.

        Returns:
            Whether rows can be read now that could not be before.
        """
        if self._backend.READABLE_IN_EPOCH:
            return True
        self._since_copy += batches
        now = time.monotonic()
        if self._copied is None:
            self._copied = (
                now  # a copy must be compiled first, for which the first batch is no time
            )
        if self._since_copy < self.tape.depth // 4 and now - self._copied < COPY_SECONDS:
            return self._can_read
        self._copied, self._since_copy = now, 0
        copy = self._backend.copy_tape(self.tape, model, result)
        if copy is not None:
            self._copies = [*self._copies[-1:], copy]
        return self._can_read

    @property
    def _can_read(self) -> bool:
        """Whether a copy is there; the step of the older one of two has long run."""
        copies = self._copies
        return len(copies) == 2 or (len(copies) == 1 and self._backend.is_there(copies[0]))

    def read(self, whole: bool) -> TapeRows:
        """New rows; all of them where `whole` says that the model's variables are in place."""
        if whole or self._backend.READABLE_IN_EPOCH:
            self._copies = []
            count = self.tape.rows_written()
            ring = self._backend.read(self.tape.ring) if count > self._seen else None
            return self._decode(count, ring)
        if not self._can_read:
            return _NO_ROWS
        count, ring = self._copies.pop(0)
        return self._decode(int(np.asarray(count)), np.asarray(ring))

    def read_before(self, model: Any, args: tuple[Any, ...]) -> TapeRows:
        """All rows written before an execution that gets these arguments; waits for the steps
        before it.
        """
        copy = self._backend.tape_before(self.tape, model, args)
        if copy is not None:
            return self._decode(*copy)
        if self._backend.READABLE_IN_EPOCH or not self._copies:
            return self.read(whole=self._backend.READABLE_IN_EPOCH)
        count, ring = self._copies.pop()
        return self._decode(int(np.asarray(count)), np.asarray(ring))

    def skip(self, model: Any, result: Any) -> None:
        """Leaves out what an execution that is not ours has written."""
        copy = None if result is None else self._backend.copy_tape(self.tape, model, result)
        count = self.tape.rows_written() if copy is None else int(np.asarray(copy[0]))
        self._foreign += count - self._seen
        self._seen = count
        self._copies = []

    def _decode(self, count: int, ring: np.ndarray[Any, Any] | None) -> TapeRows:
        """Rows not seen yet out of a copy of the ring taken when `count` rows had been written."""
        if ring is None or count <= self._seen:
            return _NO_ROWS
        first = max(self._seen, count - self.tape.depth)
        lost = first - self._seen
        places = np.arange(first, count, dtype=np.int64)
        rows = ring[places % self.tape.depth].astype(np.float64)
        is_gap = rows == GAP
        rows[(rows == NOTHING) | is_gap] = np.nan
        self._seen = count
        columns = {
            name: rows[:, i] for name, i in self.tape.names.items() if not is_gap[:, i].all()
        }
        gaps = {
            name: is_gap[:, i]
            for name, i in self.tape.names.items()
            if name in columns and is_gap[:, i].any()
        }
        _drop_unflushed(columns, self.tape.flushed, places % MARKS + 1)
        for name, kinds in self.tape.on_host.items():
            for (make, _), cells in kinds.items():
                _make(name, make, cells, columns, gaps)
        steps = places + 1 - self._foreign
        return TapeRows(steps, columns, gaps, lost, self.tape.without_place)


def _make(
    name: str,
    make: Callable[..., Any],
    cells: tuple[str, ...],
    columns: dict[str, Any],
    gaps: dict[str, Any],
) -> None:
    """Puts a column in the place of the cells that it is made of, if there are any."""
    found, missing = [], np.False_
    for cell in cells:
        found.append(columns.pop(cell, None))
        missing = missing | gaps.pop(cell, np.False_)
    if any(values is None for values in found):
        return
    values = make(HOST_OPS, *found)
    values = np.where(values == NOTHING, np.nan, values)
    if name in columns:  # other traces have made it otherwise
        values = np.where(missing, columns[name], values)
        missing = missing & gaps.pop(name, np.False_)
    columns[name] = values
    if missing.any():
        gaps[name] = missing


def _drop_unflushed(columns: dict[str, Any], flushed: set[str], marks: Any) -> None:
    """Leaves out what was measured inside a gradient and never came out of it, so that what an
    earlier step has left there is in its place.
    """
    found = columns.pop(FLUSHED, None)
    arrived = found == marks
    if found is None or arrived.all():
        return
    for name in flushed & set(columns):
        if arrived.any():
            columns[name] = np.where(arrived, columns[name], np.nan)
        else:
            del columns[name]
