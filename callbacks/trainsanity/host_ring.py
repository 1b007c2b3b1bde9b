"""The tape's ring where the step runs as Python code and the ring lies in memory beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

Cells = Mapping[int, Any]
Make = Callable[[list[Any]], Iterable[Cells]]


class HostRing:
    """Keeps rows as they come, and makes and writes many at once when somebody looks.

    Between two steps, each of which runs through all of Keras, any line of ours takes several times
    as long as when it runs again and again.

    Args:
        ring, count: the memory of the tape's variables; shapes (depth, width) and ().
        rest: stands where a row has no cell.
        number: makes a number of a scalar.
    """

    AT_ONCE = 64  # rows
    MOST_BYTES = 8 * 2**20  # that may wait

    def __init__(
        self,
        ring: np.ndarray[Any, Any],
        count: np.ndarray[Any, Any],
        rest: float,
        number: Callable[[Any], float],
    ) -> None:
        self._ring, self._count, self._rest, self._number = ring, count, rest, number
        self._rows: list[tuple[Make, Any]] = []
        self._waiting = 0  # bytes

    def write(self, cells: Cells) -> None:
        """Scalars by their places; a tensor may change after this."""
        number = self._number
        self.write_later(list, {place: number(value) for place, value in cells.items()})

    def write_later(self, make: Make, source: Any, size: int = 0) -> None:
        """The row that `make` makes of this; it is given all that came for it one after another.

        Args:
            size: bytes that the source keeps.
        """
        self._rows.append((make, source))
        self._waiting += size
        if len(self._rows) >= self.AT_ONCE or self._waiting >= self.MOST_BYTES:
            self.put_in_place()

    def put_in_place(self) -> None:
        """All rows so far are in the ring."""
        rows, self._rows, self._waiting = self._rows, [], 0
        for make, run in groupby(rows, lambda row: row[0]):
            for cells in make([source for _, source in run]):
                self._put(cells)

    def _put(self, cells: Cells) -> None:
        row = self._ring[int(self._count) % len(self._ring)]
        row.fill(self._rest)
        with np.errstate(over="ignore"):
            row[list(cells)] = list(map(self._number, cells.values()))
        self._count += 1
