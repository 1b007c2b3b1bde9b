"""Small data in which there is something to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Shape = tuple[int, ...]


def table(rows: int = 96, columns: int = 6, seed: int = 0) -> tuple[Floats, Floats]:
    """Normal inputs and a score of about unit size; shapes (rows, columns) and (rows,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    score = x @ np.linspace(-1, 1, columns) + 0.5 * x[:, 0] * x[:, 1]
    return x.astype("float32"), (score / score.std()).astype("float32")


def kinds(rows: int = 96, columns: int = 6, classes: int = 3) -> tuple[Floats, Ids]:
    """Inputs and the class of each row; the classes are of equal size."""
    x, score = table(rows, columns)
    return x, np.digitize(score, _cuts(score, classes)).astype("int32")


def _cuts(score: NDArray[Any], classes: int) -> NDArray[Any]:
    return np.quantile(score, np.arange(1, classes) / classes)


def pictures(rows: int = 64, side: int = 12, channels: int = 1) -> tuple[Floats, Ids]:
    """Noise with a bright bar, and in which third of the picture the bar stands."""
    rng = np.random.default_rng(1)
    x = rng.random(size=(rows, side, side, channels)) * 0.5
    at = rng.integers(0, side - 1, size=rows)
    for picture, column in zip(x, at, strict=True):
        picture[:, column : column + 2] += 0.5
    return x.astype("float32"), (at * 3 // side).astype("int32")


def sentences(rows: int = 96, length: int = 10, words: int = 30) -> Ids:
    """Ids from 1, padded with 0 behind; shape (rows, length)."""
    rng = np.random.default_rng(2)
    x = rng.integers(1, words, size=(rows, length)).astype("int32")
    x[np.arange(length) >= rng.integers(3, length + 1, size=(rows, 1))] = 0
    return x


def opinions(x: Ids) -> Floats:
    """Whether most words of a sentence are large ids; shape (rows,)."""
    return ((x > 15).sum(axis=1) > (x > 0).sum(axis=1) / 2).astype("float32")


def waves(rows: int = 96, length: int = 10, columns: int = 1) -> tuple[Floats, Floats]:
    """Sine waves with noise, (rows, length, columns), and each one's next values (rows, length)."""
    rng = np.random.default_rng(3)
    phase, speed = rng.random(size=(rows, 1, 1)) * 6, 0.2 + rng.random(size=(rows, 1, 1))
    time = np.arange(length)[None, :, None] + np.zeros((1, 1, columns))
    x = np.sin(phase + speed * time) + 0.05 * rng.normal(size=(rows, length, columns))
    return x.astype("float32"), np.sin(phase + speed * (time + 1))[..., 0].astype("float32")
