"""Methods of the user's objects behind wrappers of ours, for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]
_NOTHING = object()  # where a method was its class's, not the object's own


class Wrappers:
    """What was put over methods, so that it can be taken off again.

    Attributes:
        on: whether the wrappers have anything to do. Where somebody has put a wrapper of theirs
            over ours, ours stays, and must only pass on what it is given.
    """

    def __init__(self) -> None:
        self.on = True
        self._put: list[tuple[Any, str, Function, Any]] = []

    def put(self, owner: Any, name: str, wrapper: Function) -> None:
        own = owner.__dict__
        self._put.append((owner, name, wrapper, own.get(name, _NOTHING)))
        # For those who ask for a signature, as Keras does when a layer fails.
        wrapper.__dict__.setdefault("__wrapped__", getattr(owner, name, None))
        # Past any `__setattr__`: Keras' would track or refuse what it is given.
        own[name] = wrapper

    def renew(self, owner: Any, name: str) -> None:
        """Puts another object in the place of a wrapper, which does the same."""
        for i, (each, known, wrapper, before) in enumerate(self._put):
            if each is owner and known == name and owner.__dict__.get(name) is wrapper:
                owner.__dict__[name] = other = functools.partial(wrapper)
                self._put[i] = (owner, name, other, before)

    def __bool__(self) -> bool:
        return bool(self._put)

    def take_off(self, *, with_others: bool = False) -> None:
        """Leaves what was there before; safe to call twice.

        Args:
            with_others: also where somebody has put a wrapper of theirs over ours.
        """
        self.on = False
        for owner, name, wrapper, before in reversed(self._put):
            own = owner.__dict__
            if not with_others and own.get(name) is not wrapper:
                continue
            if before is _NOTHING:
                own.pop(name, None)
            else:
                own[name] = before
        self._put.clear()
