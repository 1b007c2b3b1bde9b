"""How many Keras variables are alive: those known at first, and all that are made from then on.

Keras keeps no list of its variables. The garbage collector knows all objects, but also tuples that
another thread is still making, and these break when somebody else has them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from keras.src.backend.common.variables import Variable

from trainsanity.overheard import Function, Overheard


def _telling(original: Function, counts: Sequence[LiveVariables]) -> Function:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for count in tuple(counts):
            count.add(self)

    return init


_made = Overheard(Variable, "__init__", _telling)


class LiveVariables:
    """Counts until `stop`; its length is the number of variables."""

    def __init__(self, known: Iterable[Any]) -> None:
        # By id, as variables compare by value. An entry goes before its id can be used again.
        self._alive: dict[int, weakref.ref[Any]] = {}
        for variable in known:
            self.add(variable)
        _made.listen(self)

    def add(self, variable: Any) -> None:
        key, alive = id(variable), self._alive
        alive[key] = weakref.ref(variable, lambda _: alive.pop(key, None))

    def __len__(self) -> int:
        return len(self._alive)

    def stop(self) -> None:
        """Safe to call twice; with the last one the class is as it was."""
        _made.forget(self)
