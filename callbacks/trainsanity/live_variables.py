"""How many Keras variables are alive: those known at first, and all that are made from then on.

Keras keeps no list of its variables. The garbage collector knows all objects, but also tuples that
another thread is still making, and these break when somebody else has them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

from keras.src.backend.common.variables import Variable

_counting: list[LiveVariables] = []
_original = Variable.__init__


@functools.wraps(_original)
def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    _original(self, *args, **kwargs)
    for count in tuple(_counting):
        count.add(self)


class LiveVariables:
    """Counts until `stop`; its length is the number of variables."""

    def __init__(self, known: Iterable[Any]) -> None:
        # By id, as variables compare by value. An entry goes before its id can be used again.
        self._alive: dict[int, weakref.ref[Any]] = {}
        for variable in known:
            self.add(variable)
        _counting.append(self)
        Variable.__init__ = _init

    def add(self, variable: Any) -> None:
        key, alive = id(variable), self._alive
        alive[key] = weakref.ref(variable, lambda _: alive.pop(key, None))

    def __len__(self) -> int:
        return len(self._alive)

    def stop(self) -> None:
        """Safe to call twice; with the last one the class is as it was."""
        if self in _counting:
            _counting.remove(self)
        if not _counting and Variable.__init__ is _init:
            Variable.__init__ = _original
