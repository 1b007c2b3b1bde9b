"""Real data without a download: the source of Python's own standard library.

One sample is one line. Each token of the line is an id, and its label is the class that the
standard `tokenize` module gives it: name, keyword, number, string, operator, comment. Frequent
tokens have an id of their own; all others share "unknown", so that a model has to read the
neighbours.
"""

from __future__ import annotations

import collections
import keyword
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LENGTH = 48  # tokens a line is padded or cut to
VOCABULARY = 100  # different token texts that have an id of their own
PAD, UNKNOWN = 0, 1
IDS = VOCABULARY + 2  # padding and "unknown" are ids too
CLASSES = ("padding", "name", "keyword", "number", "string", "operator", "comment")

_CLASS_OF_TYPE = {
    tokenize.NUMBER: CLASSES.index("number"),
    tokenize.STRING: CLASSES.index("string"),
    tokenize.OP: CLASSES.index("operator"),
    tokenize.COMMENT: CLASSES.index("comment"),
}

Ids = NDArray[np.int32]


def load(lines: int = 12_800) -> tuple[Ids, Ids]:
    """Token ids and their classes, padded with 0.

    Returns:
        Two arrays of shape (lines, LENGTH): ids in 0..IDS-1 and classes in 0..len(CLASSES)-1.
    """
    read = _read_lines(lines)
    counts = collections.Counter(text for line in read for text, _ in line)
    id_of = {text: i for i, (text, _) in enumerate(counts.most_common(VOCABULARY), UNKNOWN + 1)}
    ids = np.full((len(read), LENGTH), PAD, np.int32)
    classes = np.full((len(read), LENGTH), PAD, np.int32)
    for row, line in enumerate(read):
        for column, (text, token_class) in enumerate(line[:LENGTH]):
            ids[row, column] = id_of.get(text, UNKNOWN)
            classes[row, column] = token_class
    return ids, classes


def _read_lines(wanted: int) -> list[list[tuple[str, int]]]:
    """The first `wanted` lines of code of the standard library, as (text, class) of each token."""
    lines: list[list[tuple[str, int]]] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        lines.extend(_lines_of(path))
        if len(lines) >= wanted:
            break
    return lines[:wanted]


def _lines_of(path: Path) -> list[list[tuple[str, int]]]:
    by_line: dict[int, list[tuple[str, int]]] = collections.defaultdict(list)
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            token_class = _class_of(token)
            if token_class is not None:
                by_line[token.start[0]].append((token.string, token_class))
    return list(by_line.values())


def _class_of(token: tokenize.TokenInfo) -> int | None:
    """None for tokens without text of their own, such as an indentation or the end of a line."""
    if token.type == tokenize.NAME:
        return CLASSES.index("keyword" if keyword.iskeyword(token.string) else "name")
    return _CLASS_OF_TYPE.get(token.type)
