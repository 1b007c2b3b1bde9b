"""The tape: a ring buffer on the device into which the compiled step writes one row per batch.

It is a Keras metric whose result is empty, so Keras itself carries its variables through the step
(also through
JAX's stateless one), while logs, history and saved files never show it. The host reads the ring
once
in many batches; therefore every batch is seen, also with `steps_per_execution`, without a wait per
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

DEPTH = 256  # rows; the host reads every READ_EVERY
READ_EVERY = 64  # batches
NOTE_EVERY = 32  # executions between copies of the ring, where it cannot be read in an epoch


class Tape(keras.metrics.Metric):  # type: ignore[misc]
    """A `(depth, width)` float32 ring and the number of rows ever written.

    Args:
        backend: the module of `trainsanity.backends` in use.
        depth: rows kept; older ones are overwritten.
        width: columns; the names are given to them while the step is traced.
    """

    def __init__(self, backend: Any, depth: int, width: int) -> None:
        super().__init__(name="trainsanity_tape", dtype="float32")
        self.depth = depth
        self.width = width
        self._backend = backend
        self.names: dict[str, int] = {}  # column name -> index; the same for every trace
        self.overflow: list[str] = []  # columns that found no place
        self.ring = self.add_variable((depth, width), "zeros", dtype="float32", name="ring")
        self.count = self.add_variable((), "zeros", dtype="int32", name="count")
        self.pending: Any = None
        if backend.HAS_GRADIENT_BOUNDARY:
            self.pending = self.add_variable((width,), "zeros", dtype="float32", name="pending")

    def carry(self, variables: list[Any]) -> None:
        """Takes further variables along, so that Keras threads them through JAX's stateless step
        too.
        """
        self._variables.extend(variables)

    def flush(self, columns: Mapping[str, Any]) -> None:
        """Keeps columns for the row to come. On JAX values made inside the gradient can leave it
        only so.
        """
        self.pending.assign(self._row(columns))

    def _row(self, columns: Mapping[str, Any]) -> Any:
        cells: dict[int, Any] = {}
        for name, value in columns.items():
            index = self._index(name)
            if index is not None:
                cells[index] = ops.reshape(ops.cast(value, "float32"), ())
        used = max(cells, default=-1) + 1
        absent = ops.zeros((), "float32")
        filler = ops.zeros((self.width - used,), "float32")
        if not used:
            return filler
        return ops.concatenate([ops.stack([cells.get(i, absent) for i in range(used)]), filler])

    def write(self, columns: Mapping[str, Any]) -> None:
        """Writes one row; `columns` are scalar tensors. Called while the step is traced."""
        row = self._row(columns)
        if self.pending is not None:
            row = row + self.pending
        self._backend.write_row(self.ring, self.count, row)

    def _index(self, name: str) -> int | None:
        if name in self.names:
            return self.names[name]
        if len(self.names) == self.width:
            self.overflow.append(name)
            return None
        self.names[name] = len(self.names)
        return self.names[name]

    def result(self) -> dict[str, Any]:
        return {}

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: rows come from the taps."""

    def reset_state(self) -> None:
        """Nothing: Keras resets metrics at every epoch, the tape runs on."""


@dataclass(frozen=True)
class TapeRows:
    """Rows read from the tape: `steps` (n,) and float64 columns (n,) by name."""

    steps: np.ndarray[Any, np.dtype[np.int64]]
    columns: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    lost: int = 0  # rows overwritten before they were read

    def __len__(self) -> int:
        return len(self.steps)


class TapeReader:
    """Reads what is new on a tape."""

    def __init__(self, tape: Tape, backend: Any) -> None:
        self.tape = tape
        self._backend = backend
        self.seen = 0  # rows read or given up so far
        self._steps_noted = 0
        self._copies: list[Any] = []

    def note(self, model: Any, result: Any) -> None:
        """After a step: where variables cannot be read in between, keeps a copy of the ring, made
        on the device.
        """
        self._steps_noted += 1
        if self._steps_noted % NOTE_EVERY == 0:
            self._copies = [*self._copies[-1:], self._backend.copy_tape(self.tape, model, result)]

    def read(self, whole: bool) -> TapeRows:
        """New rows; all of them where `whole` says that the variables are in place."""
        if whole or self._backend.READABLE_IN_EPOCH:
            self._copies = []
            count = int(self._backend.read(self.tape.count))
            ring = self._backend.read(self.tape.ring) if count > self.seen else None
            return self.decode(count, ring)
        if not self._copies or self._copies[0] is None:
            return self.decode(0, None)
        # The older copy: its step has long run, so this does not wait.
        count, ring = self._copies[0]
        return self.decode(int(np.asarray(count)), np.asarray(ring))

    def decode(self, count: int, ring: np.ndarray[Any, Any] | None) -> TapeRows:
        """Rows numbered above `seen` out of a copy of the ring taken when `count` rows had been
        written.
        """
        if ring is None or count <= self.seen:
            return TapeRows(np.empty(0, np.int64), {})
        first = max(self.seen, count - self.tape.depth)
        lost = first - self.seen
        steps = np.arange(first, count, dtype=np.int64)
        rows = ring[steps % self.tape.depth].astype(np.float64)
        self.seen = count
        return TapeRows(steps + 1, {name: rows[:, i] for name, i in self.tape.names.items()}, lost)
