"""Which variables are read: by a forward pass, or by the loss while the step is traced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common import global_state

_OWNER = next(c for c in keras.Variable.__mro__ if "value" in c.__dict__)
_PLAIN = _OWNER.__dict__["value"]
_noting: dict[int, Callable[[Any], None]] = {}  # thread -> what it does with each variable it reads
_changing = threading.Lock()


def _noted(self: Any) -> Any:
    note = _noting.get(threading.get_ident())
    if note is not None:
        note(self)
    return _PLAIN.fget(self)


_NOTED = property(_noted, _PLAIN.fset)


@contextmanager
def noted_reads(read: dict[int, tuple[Any, Any]], reader: Callable[[], Any]) -> Iterator[None]:
    """Within, every Keras variable whose value is asked for in this thread is noted under its id,
    with who asks for it by then; by those around it too. Others may train at the same time.
    """
    thread = threading.get_ident()
    around = _noting.get(thread)

    def note(variable: Any) -> None:
        read.setdefault(id(variable), (variable, reader()))
        if around is not None:
            around(variable)

    with _changing:
        _noting[thread] = note
        _OWNER.value = _NOTED
    try:
        yield
    finally:
        with _changing:
            if around is not None:
                _noting[thread] = around
            else:
                del _noting[thread]
            if not _noting:
                _OWNER.value = _PLAIN


def layer_that_runs() -> str | None:
    """Name of the outermost layer in whose call this thread is."""
    context = global_state.get_global_attribute("current_call_ctx")
    return None if context is None else str(context.entry_layer.name)
