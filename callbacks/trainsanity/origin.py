"""Whose code it is: Keras', ours, or the user's."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import keras

from trainsanity.frames import outward

# Keras adds them; they announce nothing and write to no weights.
PASSIVE = (keras.callbacks.History, keras.callbacks.ProgbarLogger)


def is_of_keras(code: Any) -> bool:
    """Whether a class, function or method is defined in Keras."""
    return _is_in("keras", code)


def is_frame_of_keras(frame: FrameType) -> bool:
    """Whether the running code is written in Keras."""
    return str(frame.f_globals.get("__name__", "")).startswith("keras.")


def is_ours(code: Any) -> bool:
    return _is_in("trainsanity", code)


def callbacks_beside_us() -> list[Any]:
    """The callbacks of the list that is being made, or has been, in a frame that called us: without
    ours, and those that Keras adds.
    """
    return [
        callback
        for callback in _callbacks_of_call()
        if not any(map(is_ours, type(callback).__mro__)) and not isinstance(callback, PASSIVE)
    ]


def _callbacks_of_call() -> list[Any]:
    for frame in outward(sys._getframe(1)):
        owner = frame.f_locals.get("self") if is_frame_of_keras(frame) else None
        if isinstance(owner, keras.callbacks.CallbackList):
            return list(owner.callbacks)
    return []


def _is_in(package: str, code: Any) -> bool:
    return str(getattr(code, "__module__", "")).startswith(f"{package}.")
