"""The compiled functions of a model before and after a watched call.

Keras keeps a compiled step until `compile` is called again, and with it all that was true when it
was traced: the trainable flags, the value of a Python learning rate, a rate of dropout or any other
number that Python code reads from an attribute. What a later `fit` does depends on that. So a
function that was there before is put back, and in place of one that the watched call has traced,
the model is left with one that is traced as that one was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from trainsanity import backends, optimizers
from trainsanity.unknown_state import names_of_keras, owners_of_state

NAMES = ("train_function", "test_function")
PLAIN = (bool, int, float, str)
# Of the model, in the trainers of Keras: how a step is to run.
CHOICES = ("_run_eagerly", "_jit_compile", "steps_per_execution", "unrolled_steps_per_execution")


class TraceTime:
    """What Python code held when a training step was traced: trainable flags, values of callables,
    plain values in attributes of layers, losses, metrics and optimizers.

    Args:
        with_flags: False where the state given to the step says what is trained, as on JAX.

    Attributes:
        data: shapes and types that it was traced for, as the backend knows them; None where it does
            not. For others it is traced anew, with what is true then.
    """

    def __init__(self, model: Any, *, with_flags: bool) -> None:
        self.data: Any = None
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
        self._values = list(_plain_values(model))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within, all of that is what it was: what is traced is traced as then."""
        with self._flags_and_rates_in_force(), self._values_in_force():
            yield

    @contextmanager
    def _values_in_force(self) -> Iterator[None]:
        changed = [
            (own, name, own[name], then)
            for own, name, then in self._values
            if name in own and isinstance(own[name], (*PLAIN, type(None))) and own[name] != then
        ]
        for own, name, _, then in changed:
            own[name] = then
        try:
            yield
        finally:
            for own, name, now, then in changed:
                if own.get(name) is then:
                    own[name] = now

    @contextmanager
    def _flags_and_rates_in_force(self) -> Iterator[None]:
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
    """Stands for a function of a model until it is called with data as those that it was traced
    for, then leaves Keras' own in its place.

    Args:
        name: `"train_function"` or `"test_function"`.

    Attributes:
        traced: what the step is traced with; None: with what is true then.
    """

    def __init__(self, model: Any, name: str, traced: TraceTime | None) -> None:
        self._model = model
        self._name = name
        self._function: Callable[..., Any] | None = None
        self.traced = traced

    def __call__(self, *args: Any) -> Any:
        function = self._function = self._function or self._made()
        known = self.traced.data if self.traced is not None else None
        if known is not None and backends.active().kind_of(args) != known:
            return function(*args)
        if getattr(self._model, self._name) is self:
            setattr(self._model, self._name, function)
        with self._as_traced():
            return function(*args)

    def _made(self) -> Callable[..., Any]:
        model, name = self._model, self._name
        now = getattr(model, name)
        setattr(model, name, None)
        try:
            with self._as_traced():
                getattr(model, f"make_{name}")()
            function: Callable[..., Any] = getattr(model, name)
        finally:
            setattr(model, name, now)
        return function

    def _as_traced(self) -> AbstractContextManager[None]:
        return nullcontext() if self.traced is None else self.traced.in_force()


class CompiledFunctions:
    """Remembers a model's compiled functions, clears them, and puts them back."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._compiled = model._loss_tracker  # `compile` makes a new one
        self._before = {name: getattr(model, name) for name in NAMES}
        earlier = self._before["train_function"]
        # What the next step must be traced with; None: with what is true at that time.
        self.traced = earlier.traced if isinstance(earlier, LaterFunction) else None
        # What holds while a step is traced; of a trace that fails, nothing will be left.
        self.tracing: TraceTime | None = None

    def clear(self) -> None:
        """Keras makes new ones, and the taps get into them."""
        for name in NAMES:
            setattr(self._model, name, None)

    def has_traced(self, args: tuple[Any, ...]) -> None:
        """A step was traced, called with these arguments."""
        if self.traced is None and self.tracing is not None:
            self.traced = self.tracing
            self.traced.data = backends.active().kind_of(args)
        self.tracing = None

    def made_anew(self) -> None:
        """Somebody had Keras make the train function once more, or compiled the model anew: what
        was before is gone.
        """
        self._compiled = self._model._loss_tracker
        self._before["train_function"] = self.traced = None

    def put_back(self, own: Mapping[str, Collection[Any]]) -> dict[str, Callable[..., Any]]:
        """As it would be without us; `traced` says what the watched call has traced, if it has.

        Args:
            own: the functions that we or Keras have made in the meantime. Others stay.

        Returns:
            What is to be called in place of our own, where a function that stays may call them.
        """
        model = self._model
        if model._loss_tracker is not self._compiled:
            # Compiled anew in between: what was there before belongs to the time before.
            self._before = dict.fromkeys(NAMES)
            self.traced = None
        plain: dict[str, Callable[..., Any]] = {}
        for name, function in self._before.items():
            traced = self.traced if name == "train_function" else None
            later = LaterFunction(model, name, traced)
            now = getattr(model, name)
            if now is None or any(now is each for each in own.get(name, ())):
                setattr(model, name, later if function is None and traced is not None else function)
            else:
                plain[name] = function or later
        return plain


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


def _plain_values(model: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The attributes of each object, a name and a value, but for what Keras itself changes."""
    for name in CHOICES:
        if name in vars(model):
            yield vars(model), name, vars(model)[name]
    for owner in (*owners_of_state(model), *optimizers.of_model(model).values()):
        own = vars(owner)
        for name, value in list(own.items()):
            if isinstance(value, PLAIN) and name not in names_of_keras():
                yield own, name, value


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value
