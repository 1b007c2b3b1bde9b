"""A shadow optimizer: how far a few elements of the weights should move.

The same class and configuration as the real optimizer, on copies of sampled elements, with the same
gradients. For an optimizer that works element by element it must move them as the real one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.optimizers.optimizer import BackendOptimizer

from trainsanity import optimizers
from trainsanity.backends.backend import Backend
from trainsanity.difference import dtype_of
from trainsanity.origin import is_of_keras
from trainsanity.tape import NOTHING
from trainsanity.wrappers import Wrappers

ELEMENTS = 32  # of each sampled variable
VARIABLES = 8  # at most

# Optimizers of Keras whose update of an element depends on that element's gradient and slots alone.
ELEMENTWISE = (
    "SGD",
    "RMSprop",
    "Adam",
    "AdamW",
    "Adagrad",
    "Adadelta",
    "Adamax",
    "Nadam",
    "Lion",
    "Ftrl",
)

PRODUCTS = ("_u_product",)  # Nadam's running product belongs to no variable

# An update of fewer roundings of its weights than this is not known to 2 %.
ROUNDINGS = 50.0


@dataclass(frozen=True)
class Sampled:
    """Elements of a variable: coordinates of shape (k, rank)."""

    variable: Any
    coordinates: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.coordinates)


def choose(variables: Sequence[Any]) -> list[Sampled]:
    """The largest variables, and of each some elements spread evenly over it."""
    usable = [v for v in variables if None not in v.shape and np.prod(v.shape)]
    largest = sorted(usable, key=lambda v: -int(np.prod(v.shape)))[:VARIABLES]
    return [Sampled(v, _coordinates(tuple(v.shape))) for v in largest]


def values_of(sampled: Sequence[Sampled], backend: Backend) -> np.ndarray[Any, Any]:
    """On the host, between two steps: float32 of shape (elements,)."""
    parts = [backend.pick_value(s.variable, s.coordinates).reshape(-1) for s in sampled]
    return np.concatenate(parts).astype(np.float32)


def _coordinates(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Elements spread over all of it, evenly apart, and in as many rows and columns as may be."""
    if not shape:
        return np.zeros((1, 0), np.int32)
    size = math.prod(shape)
    apart = math.ceil(size / ELEMENTS)
    while len(shape) > 1 and math.gcd(apart, shape[-1]) > 1:
        apart += 1
    flat = np.arange(0, size, apart)
    return np.stack(np.unravel_index(flat, shape), axis=-1).astype(np.int32)


def why_none(optimizer: Any, sampled: list[Sampled]) -> str | None:
    """Why no shadow can follow this optimizer; None where one can."""
    worker = optimizers.working(optimizer)
    name = next((c.__name__ for c in type(worker).__mro__ if is_of_keras(c)), "")
    own_class = is_of_keras(type(worker))
    if not own_class or name not in ELEMENTWISE:
        kind = type(worker).__name__
        return f"{kind} is no optimizer of Keras that works element by element"
    if any(getattr(v, "overwrite_with_gradient", False) for v in worker._trainable_variables):
        return "some variables are overwritten by their gradients"
    if not any(map(_is_followed, sampled)):
        return "no sampled weight is in float32 without a constraint"
    if optimizers.accumulation(worker) and worker.use_ema and worker.ema_overwrite_frequency:
        return "the moving average overwrites weights between accumulated updates"
    return None


def _is_followed(sampled: Sampled) -> bool:
    """Weights of half precision are rounded at every step; a constraint moves them once more."""
    variable = sampled.variable
    is_precise = dtype_of(variable) in (
        "float32",
        "float64",
    )
    return is_precise and variable.constraint is None


class Shadow:
    """Follows one optimizer on sampled elements of its weights.

    Attributes:
        followed: 1.0 for each sampled element that can be followed, else 0.0.
    """

    def __init__(self, run: Any, optimizer: Any, sampled: list[Sampled]) -> None:
        self._run = run
        self._worker = worker = optimizers.working(optimizer)
        self._sampled = sampled
        size = sum(map(len, sampled))
        self.followed = np.concatenate(
            [np.full(len(s), float(_is_followed(s)), np.float32) for s in sampled]
        )
        self._decayed = np.concatenate([np.full(len(s), _is_decayed(worker, s)) for s in sampled])
        # Weights that decay and weights that do not are updated differently.
        self._groups = [np.flatnonzero(self._decayed), np.flatnonzero(~self._decayed)]
        self._groups = [group for group in self._groups if len(group)]
        self._order = np.argsort(np.concatenate(self._groups))
        assert len(self._order) == size
        self._optimizer = _like(worker)
        self._weights = [
            run.keep(
                keras.Variable(
                    run.backend.zeros((len(group),), "float32"), name=f"trainsanity_weights_{i}"
                )
            )
            for i, group in enumerate(self._groups)
        ]
        undecayed = [
            w for w, g in zip(self._weights, self._groups, strict=True) if not self._decayed[g[0]]
        ]
        if undecayed and worker.weight_decay:
            self._optimizer.exclude_from_weight_decay(var_list=undecayed)
        with _slots_moved(self._optimizer, run.backend):
            self._optimizer.build(self._weights)
        for variable in self._optimizer.variables:
            run.keep(variable)

    def copy_slots(self) -> None:
        """Takes over the state that the real optimizer has for the sampled elements; not while a
        step is traced.
        """
        worker, read = self._worker, self._run.backend.read
        if not worker.built:
            return
        self._optimizer._iterations.assign(optimizers.updates(worker, read))
        for slot, group, places in self._slots():
            parts = [self._run.backend.pick_value(real, each) for real, each in places]
            slot.assign(np.concatenate(parts)[group].reshape(slot.shape))
        for name in PRODUCTS:
            if hasattr(self._optimizer, name):
                getattr(self._optimizer, name).assign(read(getattr(worker, name)))

    def _slots(self) -> Iterator[tuple[Any, Any, list[tuple[Any, Any]]]]:
        """Each slot of the shadow, the elements of its group, and where the real optimizer has what
        all groups hold: slots and coordinates in them.
        """
        real = optimizers.slot_lists(self._worker)
        own = optimizers.slot_lists(self._optimizer)
        places = [(real[self._worker._get_variable_index(s.variable)], s) for s in self._sampled]
        for group, slots in zip(self._groups, own, strict=True):
            for name, slot in slots.items():
                yield slot, group, [(found[name], s.coordinates) for found, s in places]

    def counters(self) -> dict[str, Any]:
        """Of the real optimizer, what belongs to no variable, while a step is traced.

        To be read outside of any branch: TensorFlow would keep the counter, which runs beside the
        data, waiting for it.
        """
        names = ["_iterations", *(name for name in PRODUCTS if hasattr(self._optimizer, name))]
        return {name: ops.copy(getattr(self._worker, name)) for name in names}

    def trace_slots(self, counters: Mapping[str, Any], is_behind: Any) -> None:
        """`copy_slots` while a step is traced, before its update.

        Args:
            counters: as `counters` gave them.
            is_behind: a bool tensor; where it is false the state stays. No branch: making one takes
                longer, for many steps.
        """
        worker, pick = self._worker, self._run.backend.pick
        done = counters["_iterations"] // (optimizers.accumulation(worker) or 1)
        for name, value in {**counters, "_iterations": done}.items():
            variable = getattr(self._optimizer, name)
            variable.assign(ops.where(is_behind, ops.cast(value, variable.dtype), variable))
        for slot, group, places in self._slots():
            parts = [ops.cast(pick(real, each), "float32") for real, each in places]
            found = ops.concatenate(parts)
            if len(self._groups) > 1:
                found = ops.take(found, group)
            slot.assign(ops.where(is_behind, ops.reshape(found, slot.shape), slot))

    def move(self, rate: Any, before: Any, gradient: Any, updated: Any | None) -> Any:
        """One update; returns how far each sampled element should move, float32 of shape
        (elements,).

        Args:
            rate: the learning rate in force.
            before, gradient: of the sampled elements; shape (elements,).
            updated: whether the real optimizer updates at this step; None: always.
        """
        state = [v for v in self._optimizer.variables if v is not self._optimizer._learning_rate]
        kept = [ops.copy(ops.convert_to_tensor(v)) for v in state] if updated is not None else []
        self._optimizer._learning_rate.assign(rate)
        starts = self._grouped(before)
        for weights, start in zip(self._weights, starts, strict=True):
            weights.assign(start)
        self._optimizer.apply(self._grouped(gradient), self._weights)
        moved = [
            ops.convert_to_tensor(weights) - start
            for weights, start in zip(self._weights, starts, strict=True)
        ]
        for variable, value in zip(state, kept, strict=False):
            variable.assign(ops.where(updated, ops.convert_to_tensor(variable), value))
        if len(moved) == 1:
            return moved[0]
        return ops.take(ops.concatenate(moved), self._order)

    def _grouped(self, elements: Any) -> list[Any]:
        if len(self._groups) == 1:  # they are in order
            return [elements]
        return [ops.take(elements, group) for group in self._groups]


def _is_decayed(worker: Any, sampled: Sampled) -> bool:
    if not worker.weight_decay:
        return True
    variable = sampled.variable
    # TensorFlow's optimizer asks about its own variables.
    is_native = keras.backend.backend() == "tensorflow"
    return bool(worker._use_weight_decay(variable.value if is_native else variable))


def _like(worker: Any) -> Any:
    """A new optimizer of the same kind; clipping, scaling and accumulation are done before it gets
    the gradient.
    """
    config = optimizers.config_of(worker)
    config.update(
        name="trainsanity_shadow",
        learning_rate=0.0,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
    )
    kind = type(worker)
    if hasattr(BackendOptimizer, "_all_reduce_sum_gradients"):
        kind = _OfOneReplica(kind.__name__, (kind,), {})
    return kind.from_config(config)


class _OneReplica:
    """Where TensorFlow's optimizer would first add up the gradients of all replicas. A shadow gets
    what has been added up; once more is refused in a branch, and keeps the graph of every such step
    for good.
    """

    _backend_update_step = BaseOptimizer._backend_update_step


class _OfOneReplica(type):
    """Goes before the backend's optimizer, but after the class of Keras, which may have an update
    of its own around it.
    """

    def mro(cls) -> list[type]:
        classes = super().mro()
        at = classes.index(BackendOptimizer)
        return [*classes[:at], _OneReplica, *classes[at:]]


@contextmanager
def _slots_moved(optimizer: Any, backend: Backend) -> Iterator[None]:
    """While it makes its slots, they are zeros of the backend's where making zeros of another shape
    would be compiled.
    """
    wrappers, original = Wrappers(), optimizer.add_variable_from_reference

    def add(reference_variable: Any, name: str | None = None, initializer: Any = "zeros") -> Any:
        initializer = backend.zeros if initializer == "zeros" else initializer
        return original(reference_variable, name=name, initializer=initializer)

    if backend.COMPILES_OPERATIONS:
        wrappers.put(optimizer, "add_variable_from_reference", add)
    try:
        yield
    finally:
        wrappers.take_off()


def effective_terms(expected: Any, moved: Any, before: Any, followed: Any) -> dict[str, Any]:
    """What `effective_rate` needs the sums of, over elements; each of shape (elements,)."""
    expected = expected * followed
    rounding = before * followed * np.float32(2.0**-24 * ROUNDINGS)
    return {
        "expected": expected * expected,
        "projected": expected * moved,
        "rounding": rounding * rounding,
    }


def effective_rate(
    ops: Any, rate: Any, projected: Any, expected: Any, rounding: Any, *conditions: Any
) -> Any:
    """The rate times the projection of the real movement on the expected one, from sums of
    `effective_terms`; `NOTHING` where it cannot be known.

    It cannot where the weights should not move, or by less than `ROUNDINGS` roundings of their own
    values; and where one of the conditions is 0.
    """
    is_known = expected > rounding
    for condition in conditions:
        is_known = is_known & (condition != 0)
    return ops.where(is_known, rate * ops.divide_no_nan(projected, expected), NOTHING)
