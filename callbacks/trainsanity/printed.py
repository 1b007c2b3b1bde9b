"""What the process prints and warns of, for each training that runs in it."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, TextIO

from trainsanity.overheard import Function, Overheard, changing


class Listener:
    """Hears what its own thread prints and warns of, and, unless it is for its thread only, what
    threads do in which nobody listens, such as those that load data.

    Args:
        hear: called with the stream, the text and the frame that has written it; None where the
            interpreter itself has.
        warned: called with the warning, its category, the frame that warns, file and line.
    """

    def __init__(
        self,
        hear: Callable[[Any, str, FrameType | None], None],
        warned: Callable[[Any, Any, FrameType | None, str, int], None] | None = None,
        *,
        only_here: bool = False,
    ) -> None:
        self.hear = hear
        self.warned = warned
        self.thread = threading.get_ident()
        self.only_here = only_here
        self._streams: list[Any] = []

    def listen(self, *streams: Any) -> bool:
        """Begins to; returns whether there is a stream that can be listened to."""
        with changing:
            for stream in {id(s): s for s in streams}.values():
                if hasattr(stream, "__dict__") and callable(getattr(stream, "write", None)):
                    self._streams.append(stream)
                    _streams.setdefault(id(stream), _overheard(stream)).listen(self)
            if self.warned is not None:
                _warnings.listen(self)
        return bool(self._streams)

    def stop(self) -> None:
        """Safe to call twice."""
        with changing:
            _warnings.forget(self)
            while self._streams:
                key = id(self._streams[-1])
                if key in _streams:
                    _streams[key].forget(self)
                    if not _streams[key]:
                        del _streams[key]
                self._streams.pop()


def _concerned(listeners: Sequence[Listener]) -> Iterable[Listener]:
    here, every = threading.get_ident(), tuple(listeners)
    own = [listener for listener in every if listener.thread == here]
    return own or [listener for listener in every if not listener.only_here]


def _overheard(stream: Any) -> Overheard:
    def wrapper_of(original: Function, listeners: Sequence[Listener]) -> Function:
        # Kept here: when the interpreter ends, modules lose their names, and `sys` is None.
        is_finalizing = sys.is_finalizing

        def write(text: Any, *args: Any) -> Any:
            result = original(text, *args)
            if listeners and isinstance(text, str) and not is_finalizing():
                for listener in _concerned(listeners):
                    listener.hear(stream, text, sys._getframe().f_back)
            return result

        return write

    return Overheard(stream, "write", wrapper_of)


def _telling_of_warnings(original: Function, listeners: Sequence[Listener]) -> Function:
    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        for listener in _concerned(listeners):
            if listener.warned is not None:
                listener.warned(message, category, sys._getframe().f_back, filename, lineno)
        original(message, category, filename, lineno, file, line)

    return showwarning


_streams: dict[int, Overheard] = {}  # id of a stream, which is kept alive by its value
_warnings = Overheard(warnings, "showwarning", _telling_of_warnings)
