"""Who wrote to the weights between two steps."""

from __future__ import annotations

import sys
from typing import Any

import keras

from trainsanity.assignments import assignments
from trainsanity.frames import outward
from trainsanity.origin import callbacks_beside_us, is_frame_of_keras, is_of_keras, is_ours
from trainsanity.probes.probe import Columns, Probe
from trainsanity.tape import TapeRows

MOVED = "weights/moved_outside"
# Hooks that run between two training steps.
HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_test_begin",
    "on_test_end",
    "on_train_batch_begin",
    "on_train_batch_end",
)
MOST_PATHS = 20


class OutsideWrites(Probe):
    """Makes the audit `moved_outside` when weights have moved between steps, and again when others
    are the cause.

    Assignments to Keras' variables are heard; where a callback may have written to the backend's
    own variable behind them, or a layer or step of the user's may have, the cause stays unknown.
    """

    name = "outside_writes"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._watched: dict[int, str] = {}  # id of a weight -> path
        self._in_step = False
        self._by_layers = False  # a layer assigns to weights when it is called
        self._written: dict[str, set[str]] = {}  # callback's class -> paths, since the last step
        self._writers: dict[int, dict[str, set[str]]] = {}  # step -> those before it
        self._hears = False  # of every value that is assigned
        self._others: list[str] = []  # classes of callbacks that have a turn between two steps
        self._said: dict[str, Any] | None = None

    def on_begin(self) -> None:
        run = self.run
        if run.kind == "fit" and run.guard is not None and not run.backend.follows_code(run.model):
            self._others = sorted({type(c).__name__ for c in callbacks_beside_us() if _has_turn(c)})
            assignments.listen(self._hear)
            self._hears = True

    def _hear(self, variable: Any) -> None:
        guard = self.run.guard
        if guard is not None and id(variable) in self._watched:  # unlike those of metrics
            guard(self.name, self._note, variable, sys._getframe(2))

    def _note(self, variable: Any, frame: Any) -> None:
        for caller in outward(frame):
            if caller.f_code.co_name == "jax_state_sync":
                return  # Keras puts back what it holds elsewhere; nothing changes
            of_keras = is_frame_of_keras(caller)
            if self._in_step and of_keras and caller.f_code.co_name == "fit":
                return
            # Only in a step may it be a layer of the user's. Looking at a function's variables
            # keeps what they hold now alive until it returns (before Python 3.13).
            owner = _owner(caller) if of_keras or self._in_step else None
            if isinstance(owner, keras.optimizers.Optimizer):
                return
            if isinstance(owner, keras.callbacks.CallbackList):
                self._blame(caller.f_locals.get("callback"), variable.path)
                return
            if self._in_step and isinstance(owner, keras.layers.Layer):
                self._by_layers = self._by_layers or not isinstance(owner, keras.Model)

    def _blame(self, callback: Any, path: str) -> None:
        """Notes the callback whose turn it is in Keras' list, if it is not ours."""
        if callback is not None and not is_ours(type(callback)):
            self.run.shared["remember_weights"]()
            self._written.setdefault(type(callback).__name__, set()).add(path)

    def on_epoch_begin(self, epoch: int) -> None:
        self._watched = {id(v): v.path for v in self.run.model.trainable_variables}

    def before_step(self, step: int) -> None:
        if self._written:
            self._writers[step] = self._written
            self._written = {}
        self._in_step = True

    def after_step(self, step: int) -> None:
        self._in_step = False

    def on_rows(self, rows: TapeRows) -> Columns:
        moved = rows.columns.get(MOVED)
        if moved is not None:
            for step, largest in zip(rows.steps, moved, strict=True):
                if largest > 0:
                    self._tell(int(step), float(largest))
        self._writers = {k: v for k, v in self._writers.items() if k > int(rows.steps[-1])}
        return {}

    def _tell(self, step: int, largest: float) -> None:
        facts = self._facts(self._writers.get(step, {}))
        if facts != self._said:
            self._said = facts
            self.run.audit("moved_outside", {**facts, "largest": largest}, step)

    def _facts(self, writers: dict[str, set[str]]) -> dict[str, Any]:
        if writers:
            paths = sorted(set().union(*writers.values()))
            return {"by": sorted(writers), "variables": paths[:MOST_PATHS], "known": True}
        is_unknown = self._others or self._by_layers or not self._own_step or not self._hears
        known = None if is_unknown else False
        return {"by": self._others, "variables": [], "known": known}

    @property
    def _own_step(self) -> bool:
        """Whether Keras' own step trains; another may train weights by an optimizer of its own."""
        return is_of_keras(type(self.run.model).train_step)

    def on_closed(self) -> None:
        assignments.forget(self._hear)


def _owner(frame: Any) -> Any:
    """The object whose method a frame runs, if it is one."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _has_turn(callback: Any) -> bool:
    plain = keras.callbacks.Callback
    return any(
        hook in callback.__dict__ or getattr(type(callback), hook) is not getattr(plain, hook)
        for hook in HOOKS
    )
