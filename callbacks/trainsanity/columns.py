"""Tables for the terminal: aligned columns and nothing else, so that they can be piped on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """One line for the heading and one for each row; the last column is not padded.

    >>> table(("run", "state"), [("a", "finished")])
    ['run  state', 'a    finished']
    """
    cells = [[cell.upper() for cell in heading]]
    cells += [[printable(value) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(_padded, line, widths)).rstrip() for line in cells]


def printable(value: object) -> str:
    """One line of text: nothing in a run's name may do anything to a terminal."""
    return "".join(c if c.isprintable() else "�" for c in str(value))


def _width(text: str) -> int:
    """Terminal cells the text takes; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
