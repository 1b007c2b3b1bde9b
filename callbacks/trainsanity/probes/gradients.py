"""Gradients as the optimizer receives them, and as clipping leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity import optimizers
from trainsanity.backends.backend import norm_of, sum_of
from trainsanity.difference import dtype_of
from trainsanity.probes.probe import Columns, Probe, Step, Update
from trainsanity.tape import NOTHING

HUGE = 3.0e38
WHOLE = 65_536  # elements up to which every element of a gradient is looked at


class Gradients(Probe):
    """Per batch the global norm, and elements that are NaN or infinite; per epoch the largest
    element of each variable.
    """

    name = "gradients"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._largest: dict[int, _Largest] = {}  # by id of the optimizer
        self._arrived: set[str] = set()  # paths of variables that got a gradient
        self._missing: set[str] = set()
        run.shared["largest_gradients"] = self._read_largest

    # on the host

    def on_optimizer(self, name: str, optimizer: Any, variables: Sequence[Any]) -> None:
        if id(optimizer) not in self._largest:
            self._largest[id(optimizer)] = _Largest(self.run, variables)

    def on_epoch_begin(self, epoch: int) -> None:
        for largest in self._largest.values():
            largest.reset()

    def _read_largest(self) -> dict[int, float]:
        """Id of a variable -> the largest absolute element of its gradients in this epoch."""
        found: dict[int, float] = {}
        for largest in self._largest.values():
            found.update(largest.read(self.run))
        return found

    # inside the step

    def trace_update(self, update: Update) -> Columns:
        self._note_paths(update)
        pairs = [
            p for p in zip(update.gradients, update.variables, strict=True) if p[0] is not None
        ]
        if not pairs:
            return {}
        scale = update.scale_before
        scale = None if scale is None else ops.cast(scale, "float32")
        raw = [gradient for gradient, _ in pairs]
        largest = self._largest.get(id(update.optimizer))
        variables = [variable for _, variable in pairs]
        which = [largest is not None and largest.follows(v) for v in variables]
        sizes = self.run.backend.sizes(raw, which, xla=self.run.compiled_by_xla)
        squares = sizes.squares
        if scale is not None:
            squares = [sum_of(ops, *squares) / ops.square(scale)]
        update.shared.setdefault("squares", []).extend(squares)
        update.shared.setdefault("nonfinite", []).extend(sizes.nonfinite)
        if largest is not None:
            now = largest.of(dict(zip(map(id, variables), sizes.largest, strict=True)), scale)
            update.shared.setdefault("largest", []).append((largest, now))
        return {}

    def _note_paths(self, update: Update) -> None:
        read = self.run.shared.get("read_for_loss")  # None where a gradient itself tells
        for gradient, variable in zip(update.gradients, update.variables, strict=True):
            is_missing = gradient is None or (read is not None and id(variable) not in read)
            (self._missing if is_missing else self._arrived).add(variable.path)
        self._missing -= self._arrived
        self.run.shared["gradient_paths"] = self._arrived
        self.run.shared["no_gradient_paths"] = self._missing

    def trace_end(self, step: Step) -> Columns:
        for largest, now in step.shared.get("largest", []):
            largest.keep(now)
        column, shared = self.run.backend.column, step.shared
        if "squares" not in shared:
            return {}
        return {
            "gradient/norm": column(norm_of, shared["squares"]),
            "gradient/nonfinite": column(sum_of, shared["nonfinite"]),
        }


class _Largest:
    """The largest absolute gradient of each small variable of an optimizer in the epoch."""

    def __init__(self, run: Any, variables: Sequence[Any]) -> None:
        self._backend = run.backend
        small = [v for v in variables if None not in v.shape and 0 < np.prod(v.shape) <= WHOLE]
        self._places = {id(v): place for place, v in enumerate(small)}
        zeros = run.backend.zeros((max(1, len(small)),), "float32")
        self._kept = run.keep(keras.Variable(zeros, trainable=False, name="trainsanity_gradients"))

    def reset(self) -> None:
        self._kept.assign(np.zeros(self._kept.shape, np.float32))

    def read(self, run: Any) -> dict[int, float]:
        values = run.backend.read(self._kept)
        return {key: float(values[place]) for key, place in self._places.items()}

    def follows(self, variable: Any) -> bool:
        return id(variable) in self._places

    def of(self, largest: dict[int, Any], scale: Any | None) -> Any:
        """In the order of the variables, divided by `scale`; shape (variables,).

        Args:
            largest: id of a variable -> the largest element of its gradient.
        """
        cells = [largest.get(id_) for id_ in self._places] or [None]
        found = self._backend.vector([0.0 if cell is None else cell for cell in cells])
        return found if scale is None else found / scale

    def keep(self, now: Any) -> None:
        # NaN counts as huge, so that it is not lost in a maximum.
        now = ops.where(now <= HUGE, now, HUGE)
        self._kept.assign(ops.maximum(self._kept, now))


def _any_half(gradients: list[Any]) -> bool:
    dtypes = {dtype_of(g) for g in gradients}
    return not dtypes.isdisjoint(("float16", "bfloat16"))


class Clipping(Probe):
    """Per batch and kind of clipping that was asked for: the bound, and the gradients as they enter
    the update.
    """

    name = "clipping"

    def trace_before_update(self, update: Update) -> None:
        if _bounds(update.optimizer):
            update.prepare()

    def trace_update(self, update: Update) -> Columns:
        columns: dict[str, Any] = {}
        bounds = {} if update.name else _bounds(update.optimizer)
        gradients = update.entering
        if not bounds or not gradients:
            return columns
        for kind, bound in bounds.items():
            if kind != "value" and _any_half(gradients):
                continue  # a norm added up in half precision, as Keras does, may be far off
            size = self._size(kind, gradients)
            if update.updated is not None:
                size = ops.where(update.updated, size, ops.full((), NOTHING))
            columns[f"clip:{kind}/declared"] = ops.full((), float(bound))
            if any(g is not None and self.run.backend.is_sparse(g) for g in update.gradients):
                columns[f"clip:{kind}/by_rows"] = ops.ones(())
            columns[f"clip:{kind}/applied"] = size
        return columns

    def _size(self, kind: str, gradients: list[Any]) -> Any:
        gradients = [self.run.backend.rows_added_up(g) for g in gradients]
        if kind == "value":
            return ops.max(ops.stack(self.run.backend.largest(gradients)))
        squares = ops.stack(self.run.backend.square_sums(gradients))
        return ops.sqrt(ops.max(squares) if kind == "norm" else ops.sum(squares))


def _bounds(optimizer: Any) -> dict[str, float]:
    """Kinds of clipping that were asked for, with their bounds."""
    worker = optimizers.working(optimizer)
    given = {
        "value": worker.clipvalue,
        "norm": worker.clipnorm,
        "global_norm": worker.global_clipnorm,
    }
    return {kind: bound for kind, bound in given.items() if bound is not None}
