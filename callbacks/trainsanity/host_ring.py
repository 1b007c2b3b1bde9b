"""The tape's ring where the step runs as Python code and the ring lies in memory beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# By place in a row: a number; of several rows a number for all, or for each of them.
Cells = Mapping[int, Any]
# Of some sources, which ones and the cells of their rows, until all have been.
Make = Callable[[list[Any]], Iterable[tuple[Sequence[int], Cells]]]


class HostRing:
    """Keeps rows as they come, and makes and writes many at once when somebody looks.

    Between two steps, each of which runs through all of Keras, any line of ours takes several times
    as long as when it runs again and again.

    Args:
        ring, count: the memory of the tape's variables; shapes (depth, width) and ().
        rest: stands where a row has no cell.
        number: makes a number of a scalar, and leaves anything else as it is.
    """

    AT_ONCE = 256  # rows
    MOST_BYTES = 8 * 2**20  # that may wait

    def __init__(
        self,
        ring: np.ndarray[Any, Any],
        count: np.ndarray[Any, Any],
        rest: float,
        number: Callable[[Any], Any],
    ) -> None:
        self._ring, self._count, self._rest, self._number = ring, count, rest, number
        self._rows: list[tuple[Make, Any]] = []
        self._waiting = 0  # bytes

    def write(self, cells: Cells) -> None:
        """Scalars by their places; a tensor may change after this."""
        number = self._number
        self.write_later(_as_they_are, {place: number(value) for place, value in cells.items()})

    def write_later(self, make: Make, source: Any, size: int = 0) -> None:
        """The row that `make` makes of this; it is given all that came for it, in their order.

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
        places = (int(self._count) + np.arange(len(rows))) % len(self._ring)
        self._ring[places] = self._rest
        self._count += len(rows)  # before anything can fail: each row stays its step's
        by_make: dict[Make, list[int]] = {_as_they_are: []}  # first, as nothing can fail there
        for i, (make, _) in enumerate(rows):
            by_make.setdefault(make, []).append(i)
        with np.errstate(over="ignore"):
            for make, own in by_make.items():
                places_of_make = places[own]
                for which, cells in make([rows[i][1] for i in own]):
                    self._put(places_of_make[which], cells)

    def _put(self, places: np.ndarray[Any, Any], cells: Cells) -> None:
        if len(places) == 1:
            row = self._ring[places[0]]
            row[list(cells)] = list(map(self._number, cells.values()))
            return
        for place, values in cells.items():
            self._ring[places, place] = self._number(values)


def _as_they_are(rows: list[Cells]) -> Iterator[tuple[Sequence[int], Cells]]:
    return (([i], cells) for i, cells in enumerate(rows))
