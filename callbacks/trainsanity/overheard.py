"""Functions of the whole process that are overheard, by trainings that may run side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

Function = Callable[..., Any]
_NOTHING = object()  # where a function was its class's, not the object's own
# Taken for a few assignments only. A finalizer may come in their middle, in the same thread.
changing = threading.RLock()


class Overheard:
    """One function, behind one wrapper of ours for as long as anybody listens.

    One for all: of wrappers that several lay over one another, those that are not taken off in
    turn would stay for good, and keep alive what they know.

    Args:
        owner, name: the class, module or object that the function is looked up in, and its name.
        wrapper_of: makes the wrapper, from the function as it was and the listeners, a list that
            changes. Ours stays, with nobody listening, where somebody has put theirs over it.
    """

    def __init__(
        self, owner: Any, name: str, wrapper_of: Callable[[Any, Sequence[Any]], Any]
    ) -> None:
        self._owner = owner
        self._name = name
        self._wrapper_of = wrapper_of
        self._listeners: list[Any] = []
        self._wrapper: Any = None
        self._before: Any = _NOTHING

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def listen(self, listener: Any) -> None:
        with changing:
            if not self._listeners:
                # Another list each time: an earlier wrapper may still be in somebody's hands.
                self._listeners = []
                self._put()
            self._listeners.append(listener)

    def forget(self, listener: Any) -> None:
        """Safe to call twice; with the last listener the function is as it was."""
        with changing:
            if listener in self._listeners:
                self._listeners.remove(listener)
                if not self._listeners:
                    self._take_off()

    def _put(self) -> None:
        self._before = vars(self._owner).get(self._name, _NOTHING)
        self._wrapper = self._wrapper_of(getattr(self._owner, self._name), self._listeners)
        setattr(self._owner, self._name, self._wrapper)

    def _take_off(self) -> None:
        if vars(self._owner).get(self._name) is not self._wrapper:
            return
        if self._before is _NOTHING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)
