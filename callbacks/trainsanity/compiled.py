"""The compiled functions of a model before and after a watched call.

Keras keeps a compiled step until `compile` is called again, and with it all that was true when it
was traced: the trainable flags, the value of a Python learning rate. What a later `fit` does
depends on that. So a function that was there before is put back, and in place of one that the
watched call has traced, the model is left with one that is traced as that one was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from trainsanity import optimizers

NAMES = ("train_function", "test_function")


class TraceTime:
    """What Python code held when a training step was traced: trainable flags and values of
    callables.

    Args:
        with_flags: False where the state given to the step says what is trained, as on JAX.
    """

    def __init__(self, model: Any, *, with_flags: bool) -> None:
        layers = model._flatten_layers() if with_flags else []
        self._flags = [(layer, layer._trainable) for layer in layers]
        variables = [v for layer in layers for v in layer._trainable_variables]
        self._variables = [(variable, variable._trainable) for variable in variables]
        self._rates = [
            (optimizer, source, value)
            for optimizer in map(optimizers.working, optimizers.of_model(model).values())
            if optimizers.is_python_rate(source := optimizer._learning_rate)
            and isinstance(value := source(), (int, float, np.number))
        ]

    def __bool__(self) -> bool:
        """Whether there is anything to restore."""
        return bool(self._flags or self._rates)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within, flags and rates are what they were: what is traced is traced as then."""
        now = [(owner, owner._trainable) for owner, _ in [*self._flags, *self._variables]]
        rates = [(optimizer, optimizer._learning_rate) for optimizer, _, _ in self._rates]
        self._set_flags([*self._flags, *self._variables])
        for optimizer, source, value in self._rates:
            if optimizer._learning_rate is source:
                optimizer.__dict__["_learning_rate"] = _constant(value)
        try:
            yield
        finally:
            self._set_flags(now)
            for optimizer, source in rates:
                optimizer.__dict__["_learning_rate"] = source

    @staticmethod
    def _set_flags(flags: list[tuple[Any, bool]]) -> None:
        for owner, flag in flags:
            if owner._trainable != flag:
                # The field itself: the setter of a layer would change all that lies below it.
                owner.__dict__["_trainable"] = flag


class LaterFunction:
    """Stands for the train function until it is called, then makes Keras' own in its place.

    Attributes:
        traced: what the step is traced with.
    """

    def __init__(self, model: Any, traced: TraceTime) -> None:
        self._model = model
        self.traced = traced

    def __call__(self, *args: Any) -> Any:
        model = self._model
        model.train_function = None
        with self.traced.in_force():
            model.make_train_function()
            return model.train_function(*args)


class CompiledFunctions:
    """Remembers a model's compiled functions, clears them, and puts them back."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._compiled = model._loss_tracker  # `compile` makes a new one
        self._before = {name: getattr(model, name) for name in NAMES}
        earlier = self._before["train_function"]
        # What the next step must be traced with; None: with what is true at that time.
        self.traced = earlier.traced if isinstance(earlier, LaterFunction) else None

    def clear(self) -> None:
        """Keras makes new ones, and the taps get into them."""
        for name in NAMES:
            setattr(self._model, name, None)

    def put_back(self) -> None:
        """As it would be without us; `traced` says what the watched call has traced, if it has."""
        model = self._model
        if model._loss_tracker is not self._compiled:
            # Compiled anew in between: what was there before belongs to the time before.
            self.clear()
            return
        for name, function in self._before.items():
            setattr(model, name, function)
        if self._before["train_function"] is None and self.traced is not None:
            model.train_function = LaterFunction(model, self.traced)


def why_step_must_stay(model: Any) -> str | None:
    """Why the compiled step of an earlier plain `fit` must not be made anew; None where it may.

    It holds what was true when it was traced, and that cannot be known any more where it may have
    changed since.
    """
    if model.train_function is None or isinstance(model.train_function, LaterFunction):
        return None
    compiled = getattr(model, "_compiled_trainable_state", None) or {}
    optimizer = getattr(model, "optimizer", None)
    known = {id(v) for v in getattr(optimizer, "_trainable_variables", [])}
    is_other = bool(known) and known != {id(v) for v in model.trainable_variables}
    if is_other or any(layer.trainable != flag for layer, flag in compiled.items()):
        return "`trainable` was changed, and the compiled step is that of an earlier fit"
    if any(
        optimizers.is_python_rate(o._learning_rate) for o in optimizers.of_model(model).values()
    ):
        return "the compiled step of an earlier fit holds the value of a Python learning rate"
    return None


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value
