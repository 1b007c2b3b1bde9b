"""Every weight over each epoch: whether it moved, and whether it was meant to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity import optimizers
from trainsanity.norms import l2_norm
from trainsanity.probes.probe import Probe

# Elements up to which a variable is compared whole; of larger ones as many, evenly spread.
WHOLE = 65_536


@dataclass
class _Watched:
    variable: Any
    layer: Any
    by_nature: bool
    trainable: bool
    coordinates: np.ndarray[Any, Any] | None
    before: np.ndarray[Any, Any]


class Weights(Probe):
    """Makes the audit `weights` at the end of each epoch from copies of all weights, or samples."""

    name = "weights"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._watched: list[_Watched] = []
        self._updates = 0
        self._spent = 0.0
        self._began = time.monotonic()

    def on_begin(self) -> None:
        self._began = time.monotonic()

    def on_epoch_begin(self, epoch: int) -> None:
        if self._is_over_budget():
            self._watched = []
            return
        started = time.monotonic()
        self._watched = []
        seen: set[int] = set()
        for layer in self.run.model._flatten_layers():
            by_nature = {id(v) for v in layer._trainable_variables}
            for variable in layer._trainable_variables + layer._non_trainable_variables:
                if id(variable) not in seen:
                    seen.add(id(variable))
                    self._watch(variable, layer, id(variable) in by_nature)
        self._updates = self._count_updates()
        self._spent += time.monotonic() - started

    def _watch(self, variable: Any, layer: Any, by_nature: bool) -> None:
        coordinates = _coordinates(tuple(variable.shape))
        value = self._take(variable, coordinates)
        is_trainable = bool(layer.trainable and variable.trainable)
        self._watched.append(_Watched(variable, layer, by_nature, is_trainable, coordinates, value))

    def _count_updates(self) -> int:
        read = self.run.backend.read
        every = optimizers.of_model(self.run.model).values()
        return max((optimizers.updates(optimizer, read) for optimizer in every), default=0)

    def _take(
        self, variable: Any, coordinates: np.ndarray[Any, Any] | None
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The elements looked at, in double precision; large variables stay where they are."""
        if coordinates is None:
            value = self.run.backend.read(variable)
        else:
            value = self.run.backend.pick_value(variable, coordinates)
        return np.array(value, np.float64).reshape(-1)

    def _is_over_budget(self) -> bool:
        """Copies of large models take time, of which audits in all may take a share."""
        elapsed = time.monotonic() - self._began
        return self._spent > max(1.0, self.run.settings.audit_budget * elapsed)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if not self._watched:
            return
        started = time.monotonic()
        held = optimizers.of_model(self.run.model).values()
        trained = {id(v) for o in held for v in optimizers.working(o)._trainable_variables}
        read_largest = self.run.shared.get("largest_gradients")
        largest = read_largest() if read_largest else {}
        variables = [self._facts(watched, trained, largest) for watched in self._watched]
        partly = any(watched.coordinates is not None for watched in self._watched)
        self.run.audit(
            "weights",
            {
                "variables": variables,
                "sampled": WHOLE if partly else None,
                "updates": self._count_updates() - self._updates,
            },
        )
        self._spent += time.monotonic() - started

    def _facts(
        self, watched: _Watched, trained: set[int], largest: Mapping[int, float]
    ) -> dict[str, Any]:
        variable, shared = watched.variable, self.run.shared
        now = self._take(variable, watched.coordinates)
        finite = np.isfinite(now)
        with np.errstate(invalid="ignore"):
            moved = np.abs(now - watched.before)
        moved = moved[~np.isnan(moved)]
        arrived = shared.get("gradient_paths", set())
        missing = shared.get("no_gradient_paths", set())
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
            "moved": float(moved.max()) if moved.size else 0.0,
            "norm": l2_norm(now[finite]),
            "nonfinite": int((~finite).sum()),
            "gradient": None if "taps" in self.run.not_testable else path not in missing - arrived,
            "gradient_largest": largest.get(id(variable)) if path in arrived else None,
        }


def _coordinates(shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """Of large variables as many elements, spread evenly; shape (k, rank). None: all."""
    size = int(np.prod(shape))
    if size <= WHOLE:
        return None
    flat = np.linspace(0, size - 1, WHOLE).astype(np.int64)
    return np.stack(np.unravel_index(flat, shape), axis=-1).astype(np.int32)
