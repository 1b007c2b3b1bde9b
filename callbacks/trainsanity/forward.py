"""Forward passes for audits that leave the model exactly as it was."""

from __future__ import annotations

import random
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.utils import module_utils

from trainsanity import backends
from trainsanity.assignments import assignments
from trainsanity.difference import numpy_of
from trainsanity.errors import CannotAudit
from trainsanity.interrupts import is_interrupt
from trainsanity.overheard import changing
from trainsanity.unknown_state import unknown_state_as_now


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Puts back, at the end, all that a forward pass may change: statistics, seeds, states, random
    generators.
    """
    copies_of = backends.active().copies_of
    volatile = [copy for v in volatile_variables(model) for copy in copies_of(v)]
    with (
        generators_as_now(),
        values_as_now(volatile),
        assigned_as_now(),
        scopes_as_now(),
        undecided_as_now(model),
        unknown_state_as_now(model),
    ):
        yield


@contextmanager
def undecided_as_now(model: Any) -> Iterator[None]:
    """Leaves open whether XLA compiles a model inside that was never compiled itself: Keras decides
    when somebody asks, as saving does.
    """
    parts = [vars(layer) for layer in model._flatten_layers()]
    undecided = [own for own in parts if own.get("_jit_compile", ...) is None]
    try:
        yield
    finally:
        for own in undecided:
            own["_jit_compile"] = None


@contextmanager
def scopes_as_now() -> Iterator[None]:
    """Takes away again what Keras keeps of a scope that was entered for the first time: torch
    compiles a step anew where it is there, though it says that there is no scope.
    """
    kept = vars(global_state.GLOBAL_STATE_TRACKER)  # of this thread
    before = set(kept)
    try:
        yield
    finally:
        for name in [name for name in kept if name not in before and kept[name] is None]:
            del kept[name]


@contextmanager
def evaluation_untouched(model: Any) -> Iterator[None]:
    """Within, the model may be evaluated; its metrics and its test function stay as they were."""
    function, model.test_function = model.test_function, None
    try:
        uncompiled = backends.active().uncompiled(model)
        values, assigned = values_as_now(model.metrics_variables), assigned_as_now()
        with values, uncompiled, assigned, unknown_state_as_now(model):
            yield
    finally:
        model.test_function = function


@contextmanager
def values_as_now(variables: Iterable[Any]) -> Iterator[None]:
    """Puts variables back, at the end, to what they hold now."""
    before = [(v, numpy_of(v).copy()) for v in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@contextmanager
def assigned_as_now() -> Iterator[None]:
    """Puts all other variables back that this thread assigns to: a layer may write to its own
    weights, to states that are no weights, a loss to variables that the model does not know.
    """
    kept = _Assigned()
    assignments.listen(kept.note)
    try:
        yield
    finally:
        assignments.forget(kept.note)
        for variable, value in kept.before.values():
            variable.assign(value)


SYNC = "jax_state_sync"  # in which Keras puts back what it holds elsewhere: nothing changes


class _Assigned:
    """Attributes:
    before: id of a variable -> itself and its value before this thread first assigned to it.
    """

    def __init__(self) -> None:
        self.before: dict[int, tuple[Any, Any]] = {}
        self._thread = threading.get_ident()

    def note(self, variable: Any) -> None:
        is_other = threading.get_ident() != self._thread or id(variable) in self.before
        if is_other or in_stateless_scope():  # where nothing is written to the variable
            return
        if sys._getframe(2).f_code.co_name == SYNC:
            return
        with backends.active().outside_trace():
            value = numpy_of(variable).copy()
        self.before[id(variable)] = (variable, value)


@contextmanager
def names_untouched() -> Iterator[None]:
    """Within, objects may be made without moving on the numbers in the names of those that come
    later.
    """
    counts = "object_name_uids"
    now = global_state.get_global_attribute(counts)
    before = None if now is None else now.copy()
    try:
        yield
    finally:
        # None: nothing has a name yet in this thread, and Keras will begin to count by itself.
        global_state.set_global_attribute(counts, before)


class _OnlyImported(module_utils.LazyModule):  # type: ignore[misc] # Keras is Any to mypy
    @property
    def available(self) -> bool:
        return self.name in sys.modules and bool(super().available)


@contextmanager
def tensorflow_as_imported() -> Iterator[None]:
    """Within, Keras does not import TensorFlow to see whether an object is of it, as it does when
    it saves on other backends: where nobody has imported it, there is none.
    """
    lazy, need = module_utils.tensorflow, object()
    try:
        with changing:
            _needs.add(need)
            if type(lazy) is module_utils.LazyModule and lazy._available is None:
                lazy.__class__ = _OnlyImported
        yield
    finally:
        with changing:
            _needs.discard(need)
            # Another thread may still be at it.
            if not _needs and type(lazy) is _OnlyImported:
                lazy.__class__ = module_utils.LazyModule


_needs: set[object] = set()


@contextmanager
def generators_as_now() -> Iterator[None]:
    """Puts the global random generators back, at the end, to where they are now: Python's, NumPy's,
    the backend's.
    """
    backend = backends.active()
    python, numpy, own = random.getstate(), np.random.get_state(), backend.generator_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        backend.put_back_generator(own)


def recurrent_states(layer: Any) -> list[Any]:
    """Variables in which a layer keeps a state from batch to batch."""
    held = keras.tree.flatten(getattr(layer, "states", None) or [])
    return [v for v in held if isinstance(v, keras.Variable)]


def volatile_variables(model: Any) -> list[Any]:
    """Variables that a forward pass may change: all that are not trained by their nature."""
    trained = {id(v) for layer in model._flatten_layers() for v in layer._trainable_variables}
    return [v for v in _all_variables(model) if id(v) not in trained]


def _all_variables(model: Any) -> list[Any]:
    """Weights, seed generators' states, and the state of metrics that layers keep."""
    layers = model._flatten_layers()
    kept = [v for layer in layers for metric in layer._metrics for v in metric.variables]
    return list({id(v): v for v in [*model.variables, *kept]}.values())


def quiet_forward(model: Any, x: Any, *, training: bool = False) -> Any:
    """The model's output on a sample, called eagerly, with nothing changed."""
    with untouched(model):
        return call_model(model, x, training=training)


def redrawn_forward(model: Any, x: Any) -> Any:
    """The same with the next random numbers of layers that draw some at inference too: another
    way through the model may draw others from the same seed.
    """
    with untouched(model):
        for layer in model._flatten_layers():
            for generator in layer._seed_generators:
                generator.next()
        return call_model(model, x, training=False)


def call_model(model: Any, x: Any, *, training: bool) -> Any:
    """One eager call.

    Raises:
        CannotAudit: the model itself raises on these rows.
    """
    with refused("an eager call of the model on the captured rows raises"):
        return model(x, training=training) if model._call_has_training_arg else model(x)


def as_in_training(structure: Any) -> Any:
    """The tensors that Keras makes of arrays before a step sees them; None stays None."""

    def tensor(leaf: Any) -> Any:
        if leaf is None:
            return None
        made = keras.ops.convert_to_tensor(leaf)
        is_double = keras.backend.standardize_dtype(made.dtype) == "float64"
        return keras.ops.cast(made, keras.config.floatx()) if is_double else made

    return keras.tree.map_structure(tensor, structure)


def reading_weights_as(layer: Any) -> Any:
    """Within, weights are read in the layer's compute dtype, as in `Layer.__call__`.

    For calls of `layer.call` itself; without it a float32 kernel meets float16 inputs.
    """
    from keras.src.backend.common.variables import AutocastScope

    return AutocastScope(layer.compute_dtype if layer.autocast else None)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Within, what models raise on data that they do not take becomes `CannotAudit`."""
    expected: tuple[type[Exception], ...] = (
        *(ValueError, TypeError, IndexError, KeyError, RuntimeError, NameError),
        *backends.active().forward_errors(),
    )
    try:
        yield
    except expected as error:
        if is_interrupt(error):
            raise
        reason = f"{type(error).__name__}: {_first_line(str(error))}"
        raise CannotAudit(f"{what}: {reason[:300]}") from error


def _first_line(message: str) -> str:
    """Keras puts the layer before the message, and the message in bold (traceback_utils.py)."""
    plain = re.sub(r"\x1b\[\d*m", "", message)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling "):
        return f"{lines[0].rstrip('.').split()[-1]} says: {lines[1]}"
    return lines[0] if lines else ""


def fixed_batch(model: Any) -> int | None:
    """The batch size that the model was built for; None where it takes any."""
    try:
        inputs = model.inputs
    except AttributeError:
        return None
    sizes = {t.shape[0] for t in inputs or [] if len(t.shape) and t.shape[0] is not None}
    return max(sizes, default=None)
