"""Every weight over each epoch: whether it moved, and whether it was meant to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity.probes.probe import Columns, Probe, Step, Update

HUGE = 3.0e38
# Elements up to which a variable is compared whole; of larger ones as many, evenly spread.
WHOLE = 65_536


@dataclass
class _Watched:
    variable: Any
    layer: Any
    by_nature: bool
    trainable: bool
    indices: np.ndarray[Any, Any] | None
    before: np.ndarray[Any, Any]


class Weights(Probe):
    """Makes the audit `weights` at the end of each epoch from copies of (samples of) all
    weights.
    """

    name = "weights"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._watched: list[_Watched] = []
        self._iterations = 0
        self._spent = 0.0
        self._began = time.monotonic()
        self._largest: Any = None  # absolute gradient of each small variable in the epoch
        self._places: dict[int, int] = {}

    def on_begin(self) -> None:
        self._began = time.monotonic()
        variables = self.run.model.trainable_variables if self.run.model.built else []
        small = [v for v in variables if None not in v.shape and np.prod(v.shape) <= WHOLE]
        if small and self.run.optimizer is not None and self.run.kind == "fit":
            self._places = {id(v): i for i, v in enumerate(small)}
            zeros = np.zeros(len(small), "float32")
            self._largest = self.run.keep(keras.Variable(zeros, trainable=False))

    def trace_after_update(self, update: Update) -> Columns:
        if self._largest is None:
            return {}
        scale = update.shared.get("loss_scale")
        cells = [ops.zeros(())] * len(self._places)
        for gradient, variable in zip(update.gradients, update.variables, strict=True):
            place = self._places.get(id(variable))
            if gradient is not None and place is not None:
                values = ops.cast(self.run.backend.dense_part(gradient), "float32")
                size = ops.max(ops.abs(values)) if 0 not in values.shape else ops.zeros(())
                cells[place] = size if scale is None else size / scale
        update.shared["gradient_largest"] = ops.stack(cells)
        return {}

    def trace_end(self, step: Step) -> Columns:
        now = step.shared.get("gradient_largest")
        if now is not None and self._largest is not None:
            # NaN counts as huge, so that it is not lost in a maximum.
            now = ops.where(now <= HUGE, now, ops.full_like(now, HUGE))
            self._largest.assign(ops.maximum(self._largest, now))
        return {}

    def on_epoch_begin(self, epoch: int) -> None:
        if self._largest is not None:
            self._largest.assign(np.zeros(len(self._places), "float32"))
        if self._is_over_budget():
            self._watched = []
            return
        started = time.monotonic()
        backend = self.run.backend
        self._watched = []
        for layer in self.run.model._flatten_layers():
            by_nature = {id(v) for v in layer._trainable_variables}
            for variable in layer._trainable_variables + layer._non_trainable_variables:
                indices = _indices(variable)
                value = _take(backend.read(variable), indices)
                watched = _Watched(
                    variable, layer, id(variable) in by_nature, variable.trainable, indices, value
                )
                self._watched.append(watched)
        self._iterations = self._updates()
        self._spent += time.monotonic() - started

    def _updates(self) -> int:
        """Updates of the weights since the optimizer was new."""
        optimizer = self.run.optimizer
        if optimizer is None:
            return 0
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        every = optimizer.gradient_accumulation_steps or 1
        return int(self.run.backend.read(optimizer._iterations)) // every

    def _is_over_budget(self) -> bool:
        """Copies of large models take time; they may not take more than audits in all are
        allowed.
        """
        elapsed = time.monotonic() - self._began
        return self._spent > max(1.0, self.run.settings.audit_budget * elapsed)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if not self._watched:
            return
        started = time.monotonic()
        optimizer = self.run.optimizer
        trained = {id(v) for v in getattr(optimizer, "_trainable_variables", [])}
        largest = None if self._largest is None else self.run.backend.read(self._largest)
        without = set(self.run.shared.get("no_gradient_paths", []))
        with_gradient = set(self.run.shared.get("gradient_paths", []))
        variables = [
            self._facts(w, trained, without, with_gradient, largest) for w in self._watched
        ]
        partly = any(w.indices is not None for w in self._watched)
        self.run.audit(
            "weights",
            {
                "variables": variables,
                "sampled": WHOLE if partly else None,
                "updates": self._updates() - self._iterations,
            },
        )
        self._spent += time.monotonic() - started

    def _facts(
        self,
        watched: _Watched,
        trained: set[int],
        without: set[str],
        with_gradient: set[str],
        largest: np.ndarray[Any, Any] | None,
    ) -> dict[str, Any]:
        variable = watched.variable
        now = _take(self.run.backend.read(variable), watched.indices)
        finite = np.isfinite(now) if now.dtype.kind == "f" else np.ones(now.shape, bool)
        moved = np.abs(now.astype(np.float64) - watched.before.astype(np.float64))
        path = variable.path
        return {
            "path": path,
            "layer": watched.layer.name,
            "class": type(watched.layer).__name__,
            "size": int(np.prod(variable.shape)),
            "trainable": bool(watched.layer.trainable and variable.trainable),
            "trainable_begin": bool(watched.trainable),
            "by_nature": watched.by_nature,
            "in_optimizer": id(variable) in trained,
            "moved": float(np.nanmax(moved)) if moved.size else 0.0,
            "norm": float(np.linalg.norm(now[finite].astype(np.float64))),
            "nonfinite": int((~finite).sum()),
            "gradient": path in with_gradient or path not in without,
            "gradient_largest": self._gradient_largest(variable, path in with_gradient, largest),
        }

    def _gradient_largest(
        self, variable: Any, arrived: bool, largest: np.ndarray[Any, Any] | None
    ) -> float | None:
        place = self._places.get(id(variable))
        return None if largest is None or place is None or not arrived else float(largest[place])


def _indices(variable: Any) -> np.ndarray[Any, Any] | None:
    size = int(np.prod(variable.shape))
    return None if size <= WHOLE else np.linspace(0, size - 1, WHOLE).astype(np.int64)


def _take(
    value: np.ndarray[Any, Any], indices: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, Any]:
    flat = np.asarray(value).reshape(-1)
    return flat.copy() if indices is None else flat[indices]
