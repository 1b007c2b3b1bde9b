"""What belongs to the process that made it, and rests in the children that are forked from it."""

from __future__ import annotations

import functools
import os
import weakref
from typing import Protocol


class Owned(Protocol):
    """Something with threads, locks or open files, none of which a child can use."""

    def leave_to_parent(self) -> None:
        """Called in a forked child, where other threads are gone and may have held any lock."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def keep(owned: Owned) -> None:
    """Has it told of every fork from now on, for as long as it lives."""
    _watch_forks()
    _owned.add(owned)


def release(owned: Owned) -> None:
    """There is nothing left to leave to a parent; safe to call twice."""
    _owned.discard(owned)


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_all)


def _leave_all() -> None:
    for owned in list(_owned):
        owned.leave_to_parent()
