"""What other callbacks say that they do, and what they do."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from trainsanity import optimizers
from trainsanity.difference import hash_of
from trainsanity.origin import callbacks_beside_us
from trainsanity.printed import Listener
from trainsanity.probes.probe import Probe
from trainsanity.wrappers import Wrappers

HOOKS = ("on_epoch_begin", "on_epoch_end", "on_train_end")
RATE = re.compile(r"learning rate to ([-+.0-9eE]*[0-9])")
# As Keras says it: a callback may also say how far off an early stopping is.
STOPPED = re.compile(r"^Epoch \d+: early stopping$", re.MULTILINE)
SAVED = re.compile(r"saving model to (\S+)")


class Announced(Probe):
    """Makes the audit `announced`; wraps the hooks of the other callbacks only to read."""

    name = "announced"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._wrappers = Wrappers()
        self._actions: list[dict[str, Any]] = []
        self._text: list[str] | None = None  # said while a hook runs
        self._listener = Listener(self._hear, only_here=True)

    def on_begin(self) -> None:
        if self.run.kind != "fit" or self.run.guard is None:
            return
        self._listener.listen(sys.stdout)
        for callback in callbacks_beside_us():
            for hook in HOOKS:
                if hook not in callback.__dict__:
                    wrapper = self._around(callback, hook, getattr(callback, hook))
                    self._wrappers.put(callback, hook, wrapper)

    def _around(self, callback: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def hook(*args: Any, **kwargs: Any) -> Any:
            is_here = threading.get_ident() == self._listener.thread
            if not self._wrappers.on or not is_here:  # given to a call in another thread too
                return original(*args, **kwargs)
            guard = self.run.guard
            assert guard is not None
            before = guard(self.name, self._rate, default=None)
            with self._overheard() as text:
                result = original(*args, **kwargs)
            guard(self.name, self._note, callback, "".join(text), before)
            if name == "on_epoch_end":
                guard(self.name, self._note_rate, callback, before)
            return result

        return hook

    @contextlib.contextmanager
    def _overheard(self) -> Iterator[list[str]]:
        """Within, what is printed comes into the list: all of it, where a hook calls another."""
        outer, self._text = self._text, []
        try:
            yield self._text
        finally:
            if outer is not None:
                outer += self._text
            self._text = outer

    def _hear(self, _stream: Any, text: str, _frame: Any) -> None:
        if self._text is not None:
            self._text.append(text)

    def _rate(self) -> float | None:
        optimizer = optimizers.working(self.run.optimizer)
        if optimizer is None or not isinstance(optimizer._learning_rate, keras.Variable):
            return None
        return float(self.run.backend.read(optimizer._learning_rate))

    def _note(self, callback: Any, text: str, before: float | None) -> None:
        said = text.strip()
        for kind, announced, after, change in self._read(callback, said):
            rate = kind == "learning_rate"
            self._actions.append(
                {
                    "by": type(callback).__name__,
                    "text": said[:200],
                    "kind": kind,
                    "announced": announced,
                    "before": before if rate else None,
                    "after": after,
                    "change": change,
                }
            )

    def _note_rate(self, callback: Any, before: float | None) -> None:
        """What the next step is to be trained with, where the callback has changed it."""
        after = self._rate()
        if before is not None and after is not None and after != before:
            by = type(callback).__name__
            what = {"kind": "learning_rate_set", "before": before, "after": after}
            self._actions.append({"by": by, "text": "", "step": self.run.step, **what})

    def _read(self, callback: Any, said: str) -> Iterator[tuple[str, Any, Any, bool]]:
        """Kind, what was announced, what is now, and whether a change was promised."""
        if (rate := RATE.search(said)) and (held := self._rate()) is not None:
            yield "learning_rate", float(rate[1]), held, "reducing" in said
        if STOPPED.search(said):
            yield (
                "stop",
                "stopped",
                "stopped" if self.run.model.stop_training else "going on",
                False,
            )
        best = getattr(callback, "best_weights", None)
        if "Restoring model weights" in said and best is not None:
            yield "weights", hash_of(*best), hash_of(*self.run.model.get_weights()), False
        if saved := SAVED.search(said):
            exists = Path(saved[1]).exists() or "://" in saved[1]
            yield "save", "a file", "a file" if exists else "no file", False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._hand_in()

    def on_end(self) -> None:
        self._hand_in()

    def _hand_in(self) -> None:
        actions, self._actions = self._actions, []
        if actions:
            self.run.audit(self.name, {"actions": actions})

    def on_closed(self) -> None:
        self._listener.stop()
        self._wrappers.take_off()
