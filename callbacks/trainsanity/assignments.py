"""Who assigns to Keras variables, as long as anybody wants to know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras.src.backend.common.variables import Variable

Listener = Callable[[Any], None]

_listeners: list[Listener] = []
_original = Variable.assign


@functools.wraps(_original)
def _assign(self: Any, value: Any) -> Any:
    for listener in tuple(_listeners):
        listener(self)
    return _original(self, value)


def listen(listener: Listener) -> None:
    """Calls `listener(variable)` before every assignment, until `forget`.

    A class is wrapped, as copies of a variable would carry a wrapper of its own along.
    """
    _listeners.append(listener)
    Variable.assign = _assign


def forget(listener: Listener) -> None:
    """Safe to call twice; with the last listener the class is as it was."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners and Variable.assign is _assign:
        Variable.assign = _original
