"""Sums and largest elements of small tensors, for many tensors at once.

XLA takes some hundred times as long to compile a reduction as to run it, and the same for every
operation between scalars. So what a row of the tape is made of is first noted, then reduced in few
loops when the row is written; and what is made of the sums is left to the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from trainsanity.backends.backend import OnHost, identity

SMALL = 16_384  # elements, of which a few sums are rather taken in one loop
AT_ONCE = 24  # tensors in one loop
FILLED = 8_192  # elements that may be added to the tensors of a loop, as all must be of one length

Numbers = list[Any]


@dataclass(frozen=True)
class Awaited:
    """A scalar made of sums over float32 tensors, none larger than `SMALL`, and of largest elements
    of others. Whoever asks for it before the row is written gets it from a loop of its own.

    Attributes:
        make: as in `OnHost`; of the sums, the largest elements and what is `given`.
    """

    sums: Sequence[Any]
    largest: Sequence[Any]
    make: Callable[..., Any] = identity
    given: Sequence[Any] = ()

    def __jax_array__(self) -> Any:
        return self.make(keras.ops, *_cells([self])[0])

    def __add__(self, other: Any) -> Any:
        return self.__jax_array__() + other

    def __mul__(self, other: Any) -> Any:
        return self.__jax_array__() * other

    __radd__, __rmul__ = __add__, __mul__


def columns_made(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns, with scalars for all that is awaited."""
    awaited = {name: value for name, value in columns.items() if isinstance(value, Awaited)}
    if not awaited:
        return columns
    cells = zip(awaited.items(), _cells([*awaited.values()]), strict=True)
    return {**columns, **{name: OnHost.of(one.make, numbers) for (name, one), numbers in cells}}


def _cells(awaited: Sequence[Awaited]) -> list[Numbers]:
    """What each is made of, by as few loops as may be."""
    sums = [tensor for one in awaited for tensor in one.sums]
    largest = [tensor for one in awaited for tensor in one.largest]
    found = map(iter, in_loops(sums, largest))
    next_sum, next_largest = (functools.partial(next, numbers) for numbers in found)
    return [
        [*(next_sum() for _ in one.sums), *(next_largest() for _ in one.largest), *one.given]
        for one in awaited
    ]


def in_loops(sums: Sequence[Any], largest: Sequence[Any]) -> tuple[Numbers, Numbers]:
    """Sums of some small tensors and largest elements of others: float32, of any shapes, none that
    is differentiated.
    """
    tensors, count = [*sums, *largest], len(sums)
    found: dict[int, Any] = {}
    for places in _loops([int(t.size) for t in tensors]):
        places.sort()  # sums first
        added = sum(place < count for place in places)
        numbers = _in_one_pass([tensors[place] for place in places], added)
        found |= dict(zip(places, numbers, strict=True))
    in_order = [found[place] for place in range(len(tensors))]
    return in_order[:count], in_order[count:]


def _loops(sizes: list[int]) -> Iterator[list[int]]:
    """Places of tensors that are to share a loop."""
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


def _in_one_pass(tensors: list[Any], added: int) -> Numbers:
    """Sums of the first `added` tensors and largest elements of the others. The loop is not
    vectorized, which large tensors need.
    """
    starts = [np.float32(0 if place < added else -np.inf) for place in range(len(tensors))]
    size = max(int(t.size) for t in tensors)
    pairs = zip(tensors, starts, strict=True)
    flat = tuple(_filled(shaped(t, (t.size,)), size, start) for t, start in pairs)
    found = jax.lax.reduce(flat, tuple(starts), _joining(added), (0,))
    # Whole, or XLA would take it apart by who uses what, and no longer see what is the same.
    return list(jax.lax.optimization_barrier(tuple(found)))


def _filled(vector: Any, size: int, value: Any) -> Any:
    missing = size - int(vector.size)
    return jax.lax.pad(vector, value, [(0, missing, 0)]) if missing else vector


def is_small(tensor: Any) -> bool:
    return 0 < int(tensor.size) <= SMALL


def shaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    """`reshape` is an operation also where it changes nothing."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def largest_of(tensor: Any) -> Any:
    return jnp.max(tensor, initial=-jnp.inf)


@functools.cache
def _joining(added: int) -> Callable[..., tuple[Any, ...]]:
    """Adds the first elements of two rows, and takes the larger of the others."""

    def joined(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = list(zip(a, b, strict=True))
        larger = [jax.lax.max(x, y) for x, y in pairs[added:]]
        return (*(x + y for x, y in pairs[:added]), *larger)

    return joined


# What is made of the numbers, by `OnHost.make`.


def negative(ops: Any, number: Any) -> Any:
    return -number


@dataclass(frozen=True)
class Missing:
    """Of `size` elements those that are not counted."""

    size: int

    def __call__(self, ops: Any, *counts: Any) -> Any:
        return self.size - sum(counts)


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
