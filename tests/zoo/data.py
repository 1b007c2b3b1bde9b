"""Small data for the trainings of the zoo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


def points(rows: int = 64, width: int = 4) -> tuple[Floats, Floats]:
    """Inputs, and one target that depends on them; shapes (rows, width) and (rows, 1)."""
    x = np.random.default_rng(0).normal(size=(rows, width)).astype("float32")
    return x, (x @ np.linspace(-1, 1, width, dtype="float32"))[:, None]


def classes(rows: int = 64, width: int = 4, kinds: int = 3) -> tuple[Floats, Ids]:
    """Inputs, and the class of each row; shapes (rows, width) and (rows,)."""
    x, y = points(rows, width)
    return x, np.digitize(y[:, 0], np.quantile(y, np.arange(1, kinds) / kinds)).astype("int32")


def sentences(rows: int = 32, length: int = 8, words: int = 20) -> tuple[Ids, Ids]:
    """Ids padded with 0 behind 2 to length-1 words, and for each a tag of 4, 0 on padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, words, size=(rows, length)).astype("int32")
    ids[np.arange(length) >= rng.integers(2, length, size=(rows, 1))] = 0
    return ids, ids % 4
