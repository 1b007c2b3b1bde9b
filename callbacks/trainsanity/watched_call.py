"""Which call of `fit` or `evaluate` is being watched, told apart from all others on the same model.

Callbacks of the user may call `evaluate`, `fit` or `train_on_batch` in the middle of ours; their
batches run through the same compiled functions and must not be counted as ours. And a call that was
left by an exception tells its callbacks nothing. Both are seen from the frames of the running
calls, which are only read.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from trainsanity.fit_arguments import FitArguments
from trainsanity.frames import frames_of_last_error, outward
from trainsanity.origin import is_frame_of_keras

PASSES = ("fit", "evaluate")
_CALLS = (*PASSES, "train_on_batch", "test_on_batch")


def calls_of(model: Any, start: FrameType | None) -> Iterator[FrameType]:
    """Frames of the model's own calls that are running in this thread, the innermost first."""
    for frame in outward(start):
        # Reading `f_locals` keeps what they hold now alive until the function returns (before
        # Python 3.13): never of functions that are none of the model's.
        is_call = frame.f_code.co_name in _CALLS and _is_of_keras_or(model, frame)
        if is_call and frame.f_locals.get("self") is model:
            yield frame


def _is_of_keras_or(model: Any, frame: FrameType) -> bool:
    """Whether a frame runs code of Keras or a method of the model."""
    if is_frame_of_keras(frame):
        return True
    methods = (vars(owner).get(frame.f_code.co_name) for owner in (model, *type(model).__mro__))
    return any(frame.f_code is _code(method) for method in methods if callable(method))


def _code(method: Any) -> CodeType | None:
    return getattr(inspect.unwrap(getattr(method, "__func__", method)), "__code__", None)


class WatchedCall:
    """The innermost `fit` or `evaluate` of a model; falsy where there is none, as in a loop of the
    user's own.
    """

    def __init__(self, model: Any, start: FrameType | None) -> None:
        self._model = model
        frame = next((f for f in calls_of(model, start) if f.f_code.co_name in PASSES), None)
        # Its id, not the frame: that would keep its local variables alive.
        self._frame = 0 if frame is None else id(frame)
        self._thread = threading.current_thread()
        self._iterator: weakref.ref[Any] | None = None
        self.arguments = FitArguments()
        if frame is not None:
            self._read(frame)

    def _read(self, frame: FrameType) -> None:
        code, local = frame.f_code, frame.f_locals
        wanted = {*code.co_varnames[: code.co_argcount]} - {"self", "callbacks"}
        iterator = local.get("epoch_iterator")
        if iterator is not None:
            self._iterator = weakref.ref(iterator)
        self.arguments = FitArguments(
            code.co_name,
            {name: local[name] for name in wanted if name in local},
            getattr(iterator, "num_batches", None),
        )

    def forgotten(self) -> WatchedCall:
        """The same call without its arguments, which hold the data."""
        self.arguments = FitArguments(self.arguments.call)
        return self

    def __bool__(self) -> bool:
        return self._frame != 0

    @property
    def iterator(self) -> Any | None:
        """Keras' iterator over the data, which lives as long as the call; None where there is none
        (any more).
        """
        return self._iterator() if self._iterator is not None else None

    def is_left(self, start: FrameType | None) -> bool:
        """Whether the call is over, as far as that can be seen from this thread: from another one
        than its own it counts as running as long as its thread runs.
        """
        if not self:
            return False
        if self._iterator is not None and self._iterator() is None:
            return True
        if not self.is_of_this_thread():
            return not self._thread.is_alive()
        return not any(map(self._is_watched, calls_of(self._model, start)))

    def is_of_this_thread(self) -> bool:
        return self._thread is threading.current_thread()

    def is_known_left(self) -> bool:
        """Whether the last error that was shown has left the call, asked from any thread.

        Frames of running threads must not be looked at from another one: that can crash the
        interpreter or lock it up (python/cpython#106092 and #106883, both Python 3.11).
        """
        return bool(self) and any(id(f) == self._frame for f in frames_of_last_error())

    def _is_watched(self, frame: FrameType) -> bool:
        """Whether this is the frame of the watched call, and not one of a later call that lies
        where it lay: on JAX the iterator may outlive its frame.
        """
        if id(frame) != self._frame:
            return False
        return self._iterator is None or frame.f_locals.get("epoch_iterator") is self._iterator()

    def is_caller(self, frame: FrameType | None) -> bool:
        """Whether a function of the model was called by the watched call, and not by another one
        inside it.
        """
        if not self:
            return True
        if id(frame) == self._frame:
            return True
        innermost = next(calls_of(self._model, frame), None)
        return innermost is not None and id(innermost) == self._frame

    def own_test_pass(self, start: FrameType | None) -> FrameType | None:
        """The frame of `evaluate` that a test hook belongs to, if the watched call made it."""
        frames = calls_of(self._model, start)
        innermost = next(frames, None)
        if innermost is None or id(innermost) == self._frame:
            return innermost
        watched = next((f for f in frames if id(f) == self._frame), None)
        if watched is None or innermost.f_code.co_name != "evaluate":
            return None
        # `fit` hands its own list of callbacks on to validation; a user's callback cannot know it.
        ours = watched.f_locals.get("callbacks")
        return innermost if innermost.f_locals.get("callbacks") is ours else None
