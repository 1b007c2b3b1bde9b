"""Sums and largest elements of small tensors, for many tensors at once.

XLA takes some hundred times as long to compile a reduction as to run it, and the same for every
operation between scalars. So what a row of the tape is made of is first noted, then reduced in few
loops when the row is written; and what is made of the sums is left to the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from trainsanity.backends.backend import OnHost, identity

SMALL = 16_384  # elements, of which a few sums are rather taken in one loop
SMALL_AND_EXACT = 2_048  # where roundings are added up too, which takes five times as long
AT_ONCE = 24  # tensors in one loop
FILLED = 16_384  # elements that may be added to the tensors of a loop, as all must be of one length

Numbers = list[Any]


class Kind(Enum):
    """What is reduced to what."""

    SUM = "sum"
    EXACT = "a sum, and what its roundings have left out"
    LARGEST = "largest element"


@dataclass(frozen=True)
class Reduced:
    """A float32 tensor, no larger than `SMALL`, that is not differentiated."""

    kind: Kind
    tensor: Any


@dataclass(frozen=True)
class Awaited:
    """A scalar made of what tensors are reduced to, and of scalars. Whoever asks for it before the
    row is written gets it from a loop of its own.

    Attributes:
        make: as in `OnHost`.
        parts: what it is made of: `Reduced` (`EXACT` ones count as two cells) or scalars.
    """

    make: Callable[..., Any]
    parts: Sequence[Any]

    @classmethod
    def sum_of(cls, tensor: Any) -> Awaited:
        return cls(identity, [Reduced(Kind.SUM, tensor)])

    def __jax_array__(self) -> Any:
        cells = [jnp.asarray(cell, jnp.float32) for cell in _cells([self])[0]]
        return self.make(keras.ops, *(shaped(cell, ()) for cell in cells))

    def __add__(self, other: Any) -> Any:
        return self.__jax_array__() + other

    def __mul__(self, other: Any) -> Any:
        return self.__jax_array__() * other

    __radd__, __rmul__ = __add__, __mul__


def composed(make: Callable[..., Any], cells: Sequence[Any]) -> Any:
    """A column of cells that may be columns themselves."""
    if not any(isinstance(cell, (Awaited, OnHost)) for cell in cells):
        return OnHost.of(make, cells)
    parts: list[Any] = []
    makes: list[tuple[Callable[..., Any], int]] = []
    for cell in cells:
        of = cell.parts if isinstance(cell, Awaited) else getattr(cell, "cells", (cell,))
        makes.append((getattr(cell, "make", identity), sum(map(_width, of))))
        parts += of
    return Awaited(Composed(make, tuple(makes)), parts)


def _width(part: Any) -> int:
    return 2 if isinstance(part, Reduced) and part.kind is Kind.EXACT else 1


def columns_made(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns, with scalars for all that is awaited."""
    awaited = {name: value for name, value in columns.items() if isinstance(value, Awaited)}
    if not awaited:
        return columns
    cells = zip(awaited.items(), _cells([*awaited.values()]), strict=True)
    return {**columns, **{name: OnHost.of(one.make, numbers) for (name, one), numbers in cells}}


def _cells(awaited: Sequence[Awaited]) -> list[Numbers]:
    """What each is made of, by as few loops as may be."""
    found = iter(in_loops([p for one in awaited for p in one.parts if isinstance(p, Reduced)]))
    return [
        [n for p in one.parts for n in (next(found) if isinstance(p, Reduced) else (p,))]
        for one in awaited
    ]


def in_loops(tensors: Sequence[Reduced]) -> list[Numbers]:
    """What each of some small tensors of any shapes is reduced to, of shape (1,)."""
    found: dict[int, Numbers] = {}
    for places in loops([int(t.tensor.size) for t in tensors]):
        numbers = _in_one_pass([tensors[place] for place in places])
        found |= dict(zip(places, numbers, strict=True))
    return [found[place] for place in range(len(tensors))]


def loops(sizes: list[int]) -> Iterator[list[int]]:
    """Places of tensors that are to share a loop, the largest first."""
    may_fill = keras.distribution.distribution() is None  # else parts lie on several devices
    loop: list[int] = []
    filled = 0
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        missing = sizes[loop[0]] - sizes[place] if loop else 0
        fits = missing == 0 or (may_fill and filled + missing <= FILLED)
        if loop and (len(loop) == AT_ONCE or not fits):
            yield loop
            loop, filled, missing = [], 0, 0
        loop.append(place)
        filled += missing
    if loop:
        yield loop


def _in_one_pass(tensors: list[Reduced]) -> list[Numbers]:
    """The loop is not vectorized, which large tensors need."""
    size = max(int(t.tensor.size) for t in tensors)
    operands: list[Any] = []
    starts: list[Any] = []
    for reduced in tensors:
        start = np.float32(-np.inf if reduced.kind is Kind.LARGEST else 0)
        operands.append(filled(reduced.tensor, size, start))
        starts.append(start)
        if reduced.kind is Kind.EXACT:
            operands.append(jax.lax.full((1, size), start))
            starts.append(start)
    kinds = tuple(reduced.kind for reduced in tensors)
    found = jax.lax.reduce(tuple(operands), tuple(starts), _joining(kinds), (1,))
    # Whole, or XLA would take it apart by who uses what, and no longer see what is the same.
    numbers = iter(jax.lax.optimization_barrier(tuple(found)))
    return [[next(numbers) for _ in range(_width(reduced))] for reduced in tensors]


def filled(tensor: Any, size: int, value: Any) -> Any:
    """Its elements, and behind them the value, as a row of shape (1, size)."""
    row = shaped(tensor, (1, tensor.size))
    missing = size - int(tensor.size)
    return jax.lax.pad(row, value, [(0, 0, 0), (0, missing, 0)]) if missing else row


def is_small(tensor: Any) -> bool:
    return 0 < int(tensor.size) <= SMALL


def shaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    """`reshape` is an operation also where it changes nothing."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def largest_of(tensor: Any) -> Any:
    return jnp.max(tensor, initial=-jnp.inf)


@functools.cache
def _joining(kinds: tuple[Kind, ...]) -> Callable[..., tuple[Any, ...]]:
    """Makes one row of two, of the numbers of each kind."""

    def joined(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = iter(zip(a, b, strict=True))
        row: list[Any] = []
        for kind in kinds:
            x, y = next(pairs)
            if kind is Kind.LARGEST:
                row.append(jax.lax.max(x, y))
                continue
            row.append(jax.lax.add(x, y))
            if kind is Kind.EXACT:
                rounding = _rounding(x, y, row[-1])
                row.append(jax.lax.add(jax.lax.add(*next(pairs)), rounding))
        return tuple(row)

    return joined


def _rounding(x: Any, y: Any, total: Any) -> Any:
    """What is missing in the sum of two (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    add, sub = jax.lax.add, jax.lax.sub  # traced faster than operators
    added = sub(total, x)
    return add(sub(x, sub(total, added)), sub(y, added))


# What is made of the numbers, by `OnHost.make`.


def negative(ops: Any, number: Any) -> Any:
    return -number


def corrected(ops: Any, total: Any, missing: Any) -> Any:
    """A sum and what is missing in it, which is NaN where the sum is infinite."""
    return total + ops.where(missing == missing, missing, 0.0)


@dataclass(frozen=True)
class Composed:
    """Of columns, of which each is made of so many cells.

    Attributes:
        columns: how each is made, and of how many.
    """

    make: Callable[..., Any]
    columns: tuple[tuple[Callable[..., Any], int], ...]

    def __call__(self, ops: Any, *cells: Any) -> Any:
        left = iter(cells)
        made = [make(ops, *(next(left) for _ in range(count))) for make, count in self.columns]
        return self.make(ops, *made)


@dataclass(frozen=True)
class Mean:
    """Of `size` numbers, by the sum of their differences from one of them."""

    size: int

    def __call__(self, ops: Any, apart: Any, one: Any) -> Any:
        return one + apart / self.size


@dataclass(frozen=True)
class Deviation:
    """Of `size` numbers, by the sums of their differences from one of them and of the squares of
    these.
    """

    size: int

    def __call__(self, ops: Any, apart: Any, squares: Any) -> Any:
        mean = apart / self.size
        return ops.sqrt(ops.maximum(squares / self.size - mean * mean, 0.0))
