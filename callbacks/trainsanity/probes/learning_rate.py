"""The learning rate: as declared, as read inside the step, and as the weights really move.

A *shadow* optimizer, of the same class and configuration, moves copies of a few elements of the
weights with the same
gradients. For optimizers that work element by element it must move them as the real one does; the
effective learning rate is the
rate in force times the projection of the real movement on the shadow's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity.probes.probe import Columns, Probe, Step, Update

ELEMENTS = 32  # of each sampled variable
VARIABLES = 8  # at most
NOTHING = -1.0e30  # no learning rate: on the tape where nothing can be said

# Optimizers whose update of an element depends on that element's gradient and slots alone.
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

# Lists of an optimizer that may be as long as the list of variables, yet are no slots.
NO_SLOTS = (
    "_trainable_variables",
    "_variables",
    "_model_variables_moving_average",
    "_accumulated_gradients",
)


@dataclass
class _Sampled:
    """The sampled elements: variable, its place in the optimizer's list, coordinates (k, rank)."""

    variable: Any
    coordinates: np.ndarray[Any, Any]


class LearningRate(Probe):
    """Declared on the host, applied in the step, effective from the movement of weights."""

    name = "learning_rate"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._shadow: Any = None
        self._shadow_weights: Any = None
        self._last_weights: Any = None
        self._has_last: Any = None
        self._sampled: list[_Sampled] = []
        self._next_declared = 1

    # host

    def on_begin(self) -> None:
        optimizer = self.run.optimizer
        if optimizer is None or self.run.kind != "fit":
            return
        if not all(layer.built for layer in self.run.model._flatten_layers()):
            # An optimizer built now would know only some of the variables, and refuse the others.
            self.run.not_testable["learning_rate/effective"] = "the first batch builds the model"
            return
        if not optimizer.built:
            optimizer.build(self.run.model.trainable_variables)
        self._sampled = _choose(self.run.model.trainable_variables)
        size = sum(len(s.coordinates) for s in self._sampled)
        if not size:
            self.run.not_testable["learning_rate/effective"] = "no variable can be sampled"
            return
        self._last_weights = self.run.keep(
            keras.Variable(np.zeros(size, "float32"), trainable=False)
        )
        self._has_last = self.run.keep(keras.Variable(0.0, trainable=False))
        reason = _why_no_shadow(optimizer)
        if reason is not None:
            self.run.not_testable["learning_rate/effective"] = reason
            return
        self._shadow_weights = self.run.keep(keras.Variable(np.zeros(size, "float32")))
        self._shadow = _shadow_of(optimizer)
        self._shadow.build([self._shadow_weights])
        for variable in self._shadow.variables:
            self.run.keep(variable)
        _copy_slots(optimizer, self._shadow, self._sampled, self.run.backend)

    def before_step(self, step: int) -> None:
        if step >= self._next_declared and self.run.optimizer is not None:
            self._next_declared = step + 64
            self.run.point(step, learning_rate__declared=self._declared(self.run.optimizer))

    def _declared(self, optimizer: Any) -> float:
        """The learning rate as the host reads it for the next step."""
        # Loss scaling wraps the optimizer that has the learning rate.
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        source = optimizer._learning_rate
        if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
            source = source(self.run.read(optimizer._iterations))
        elif callable(source) and not isinstance(source, keras.Variable):
            source = source()
        if isinstance(source, keras.Variable):
            return float(self.run.read(source))
        return float(keras.ops.convert_to_numpy(source))

    def on_epoch_begin(self, epoch: int) -> None:
        self._next_declared = 0

    # inside the step

    def trace_before_update(self, update: Update) -> None:
        update.shared["learning_rate"] = ops.cast(update.optimizer.learning_rate, "float32")
        if self._last_weights is None:
            return
        update.shared["sampled_before"] = self._pick()

    def trace_after_update(self, update: Update) -> Columns:
        rate = update.shared["learning_rate"]
        columns: dict[str, Any] = {
            "learning_rate/applied": rate,
            "optimizer/iterations": ops.convert_to_tensor(update.optimizer.iterations),
        }
        if self._last_weights is not None:
            update.shared["sampled_after"] = self._pick()
            update.shared["sampled_gradient"] = self._pick_gradients(update)
        return columns

    def trace_end(self, step: Step) -> Columns:
        before, after = (step.shared.get(f"sampled_{when}") for when in ("before", "after"))
        if before is None or after is None:
            return {}
        moved = after - before
        columns = {
            "weights/moved_outside": ops.max(ops.abs(before - self._last_weights)) * self._has_last,
            "update/sampled_norm": _norm(moved),
            "weights/sampled_norm": _norm(after),
            "weights/nonfinite": ops.sum(ops.cast(ops.logical_not(ops.isfinite(after)), "float32")),
        }
        self._last_weights.assign(after)
        self._has_last.assign(1.0)
        gradient = step.shared.get("sampled_gradient")
        if gradient is None:
            self.run.not_testable["learning_rate/effective"] = (
                "no sampled variable gets a dense gradient"
            )
            return columns
        columns["gradient/sampled_norm"] = _norm(gradient)
        if self._shadow is not None:
            rate = step.shared["learning_rate"]
            columns["learning_rate/effective"] = self._effective(rate, before, moved, gradient)
        return columns

    def _effective(self, rate: Any, before: Any, moved: Any, gradient: Any) -> Any:
        self._shadow_weights.assign(before)
        self._shadow._learning_rate.assign(rate)
        self._shadow.apply([gradient], [self._shadow_weights])
        expected = ops.convert_to_tensor(self._shadow_weights) - before
        mask = ops.convert_to_tensor(self._mask)
        expected, moved = expected * mask, moved * mask
        size = ops.sum(expected * expected)
        ratio = ops.divide_no_nan(ops.sum(expected * moved), size)
        # Where the shadow does not move, nothing can be said: the host makes NaN of it.
        return ops.where(size > 0, rate * ratio, ops.full((), NOTHING))

    def on_rows(self, rows: Any) -> Columns:
        effective = rows.columns.get("learning_rate/effective")
        if effective is not None:
            effective[effective <= NOTHING / 10] = np.nan
        return {}

    def _pick(self) -> Any:
        xla = self.run.compiled_by_xla
        pick = self.run.backend.pick
        parts = [pick(s.variable, s.coordinates, xla=xla) for s in self._sampled]
        return ops.concatenate([ops.cast(part, "float32") for part in parts])

    def _pick_gradients(self, update: Update) -> Any | None:
        """Gradients of the sampled elements after clipping, as the optimizer uses them; None where
        there is none.
        """
        backend = self.run.backend
        gradients = update.gradients
        clipped = update.shared.get("clipped", ())
        if len(clipped) == sum(g is not None for g in gradients):
            rest = iter(clipped)
            gradients = [None if g is None else next(rest) for g in gradients]
        by_variable = {id(v): g for v, g in zip(update.variables, gradients, strict=True)}
        parts, mask = [], []
        for sampled in self._sampled:
            gradient = by_variable.get(id(sampled.variable))
            usable = gradient is not None and not backend.is_sparse(gradient)
            count = len(sampled.coordinates)
            mask.append(np.full(count, float(usable), "float32"))
            if usable:
                picked = backend.pick_tensor(gradient, sampled.coordinates)
                parts.append(ops.cast(picked, "float32"))
            else:
                parts.append(ops.zeros((count,), "float32"))
        self._mask = np.concatenate(mask)
        return ops.concatenate(parts) if self._mask.any() else None


def _norm(vector: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(vector)))


def _choose(variables: list[Any]) -> list[_Sampled]:
    """The largest variables, and of each some elements spread evenly over it."""
    usable = [v for v in variables if v.constraint is None and None not in v.shape]
    largest = sorted(usable, key=lambda v: -int(np.prod(v.shape)))[:VARIABLES]
    return [_Sampled(v, _coordinates(tuple(v.shape))) for v in largest if np.prod(v.shape)]


def _coordinates(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape))
    flat = np.unique(np.linspace(0, size - 1, min(ELEMENTS, size)).astype(np.int64))
    if not shape:
        return np.zeros((1, 0), np.int32)
    return np.stack(np.unravel_index(flat, shape), axis=-1).astype(np.int32)


def _why_no_shadow(optimizer: Any) -> str | None:
    name = type(optimizer).__name__
    own_class = type(optimizer).__module__.startswith("keras.")
    if name not in ELEMENTWISE or not own_class:
        return f"{name} is no optimizer of Keras that works element by element"
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        return "the moving average overwrites the weights"
    if optimizer.gradient_accumulation_steps:
        return "gradients are accumulated over several steps"
    if optimizer.weight_decay and getattr(optimizer, "_exclude_from_weight_decay", None):
        return "weight decay leaves some variables out"
    return None


def _shadow_of(optimizer: Any) -> Any:
    config = optimizer.get_config()
    config.update(
        name="trainsanity_shadow",
        learning_rate=0.0,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
    )
    return type(optimizer).from_config(config)


def _copy_slots(optimizer: Any, shadow: Any, sampled: list[_Sampled], backend: Any) -> None:
    """Gives the shadow the state that the real optimizer has for the sampled elements."""
    shadow._iterations.assign(backend.read(optimizer._iterations))
    slots = slot_lists(optimizer)
    shadow_slots = slot_lists(shadow)[0]
    for name, own in shadow_slots.items():
        parts = []
        for s in sampled:
            index = optimizer._get_variable_index(s.variable)
            value = backend.read(slots[index][name])
            parts.append(value[tuple(s.coordinates.T)] if value.shape else value.reshape(1))
        own.assign(np.concatenate(parts))
    for name in ("_u_product",):  # Nadam's running product belongs to no variable
        if hasattr(shadow, name):
            getattr(shadow, name).assign(backend.read(getattr(optimizer, name)))


def slot_lists(optimizer: Any) -> list[dict[str, Any]]:
    """Per trained variable: slot list's name -> slot variable."""
    count = len(optimizer._trainable_variables)
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in vars(optimizer).items():
        is_list = isinstance(value, (list, tuple)) and len(value) == count and name not in NO_SLOTS
        if is_list and all(isinstance(v, keras.Variable) for v in value):
            for i, slot in enumerate(value):
                found[i][name] = slot
    return found
