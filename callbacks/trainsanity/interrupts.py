"""Exceptions that only happened to be raised while code of ours ran.

The handler of a signal, as of a time limit (`signal.alarm`), runs between two lines of whatever
runs in the main thread. What it raises is meant for the user's program.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Iterator
from types import CodeType
from typing import Any


def is_interrupt(error: BaseException) -> bool:
    """Whether a handler of a signal has raised it, or what it was raised from."""
    handlers = set(_codes())
    return any(code in handlers for each in _chain(error) for code in _codes_run(each))


def _codes() -> Iterator[CodeType]:
    """Of the handlers that are installed now."""
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler):
            yield from _codes_of(handler)


def _codes_of(handler: Any) -> Iterator[CodeType]:
    function = inspect.unwrap(getattr(handler, "func", handler))  # a partial has `func`
    for each in (function, getattr(function, "__func__", None), type(function).__call__):
        code = getattr(each, "__code__", None)
        if code is not None:
            yield code


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [each.__cause__, each.__context__]


def _codes_run(error: BaseException) -> Iterator[CodeType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code
        trace = trace.tb_next
