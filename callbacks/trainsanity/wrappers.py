"""Methods of the user's objects behind wrappers of ours, for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


class Wrappers:
    """What was put over methods, so that it can be taken off again.

    Attributes:
        on: whether the wrappers have anything to do. Where somebody has put a wrapper of theirs
            over ours, ours stays, and must only pass on what it is given.
    """

    def __init__(self) -> None:
        self.on = True
        self._put: list[tuple[Any, str, Function, Function | None]] = []

    def put(self, owner: Any, name: str, wrapper: Function) -> None:
        own = owner.__dict__
        self._put.append((owner, name, wrapper, own.get(name)))
        # Past any `__setattr__`: Keras' would track or refuse what it is given.
        own[name] = wrapper

    def __bool__(self) -> bool:
        return bool(self._put)

    def take_off(self) -> None:
        """Leaves what was there before; safe to call twice."""
        self.on = False
        for owner, name, wrapper, before in reversed(self._put):
            own = owner.__dict__
            if own.get(name) is wrapper:
                del own[name]
                if before is not None:
                    own[name] = before
        self._put.clear()
