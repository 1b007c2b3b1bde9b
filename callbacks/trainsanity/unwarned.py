"""Keeps quiet the warnings of what we do: they would look as if the user had done it, and with
filters that make errors of warnings they would end a probe.

`warnings.catch_warnings` cannot do it. It sets the filters of all threads aside, what it puts back
at the end may be another thread's, and every warning is shown again that was shown before.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from trainsanity.boundary import Boundary
from trainsanity.frames import outward
from trainsanity.overheard import changing


class _OfOurs:
    """Stands where a filter has the pattern of a text: matches any text of ours."""

    def match(self, text: str) -> bool:
        """Whether what warns was called through a boundary, in this thread."""
        frames = (f.f_code for f in outward(sys._getframe(1)))
        innermost = next((c for c in frames if c in (_OURS, _THEIRS)), None)
        return innermost is _OURS


def begin(owner: object) -> None:
    """Keeps quiet from now on what goes through boundaries, until the last owner has said `end`."""
    with changing:
        _owners.add(owner)
        # First, past all of the user's. `warnings` need not be told: nothing else is changed.
        _take_off()
        warnings.filters.insert(0, FILTER)  # type: ignore[attr-defined] # it is a list


def end(owner: object) -> None:
    """Safe to call twice."""
    with changing:
        _owners.discard(owner)
        if not _owners:
            _take_off()


def theirs(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of the user's from inside a boundary: its warnings are theirs."""
    return function(*args)


def _take_off() -> None:
    while FILTER in warnings.filters:
        warnings.filters.remove(FILTER)  # type: ignore[attr-defined] # it is a list


FILTER: Any = ("ignore", _OfOurs(), Warning, None, 0)
_OURS, _THEIRS = Boundary.call.__code__, theirs.__code__
_owners: weakref.WeakSet[object] = weakref.WeakSet()
