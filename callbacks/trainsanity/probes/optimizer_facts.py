"""The optimizer: what it is, what was set on it in vain, and what the fit before left in it."""

from __future__ import annotations

import difflib
import weakref
from typing import Any

import keras
import numpy as np

from trainsanity.probes.learning_rate import ELEMENTWISE, slot_lists
from trainsanity.probes.probe import Probe

# Names that other versions and frameworks give to arguments of ours.
OLD_NAMES = {
    "lr": "learning_rate",
    "decay": "weight_decay",
    "eps": "epsilon",
    "alpha": "learning_rate",
}

# Model -> (optimizer, iterations, norm of the slots) at the end of the last watched fit.
_left: weakref.WeakKeyDictionary[Any, tuple[Any, int, float]] = weakref.WeakKeyDictionary()


class OptimizerFacts(Probe):
    """Makes the audits `optimizer` and `optimizer_state`."""

    name = "optimizer_facts"

    @property
    def _optimizer(self) -> Any:
        """The one that moves the weights: loss scaling wraps it."""
        return getattr(self.run.optimizer, "inner_optimizer", self.run.optimizer)

    def on_begin(self) -> None:
        optimizer = self._optimizer
        if optimizer is None or self.run.kind != "fit":
            return
        self.run.audit("optimizer", self._facts(optimizer), 0)
        self.run.audit("optimizer_state", self._state(optimizer), 0)

    def _facts(self, optimizer: Any) -> dict[str, Any]:
        rate = optimizer._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            kind = "schedule"
        elif callable(rate) and not isinstance(rate, keras.Variable):
            kind = "callable"
        else:
            kind = "number"
        return {
            "class": type(optimizer).__name__,
            "element_wise": type(optimizer).__name__ in ELEMENTWISE,
            "learning_rate_kind": kind,
            "learning_rate": float(keras.ops.convert_to_numpy(optimizer.learning_rate)),
            "stray": _stray(optimizer),
        }

    def _state(self, optimizer: Any) -> dict[str, Any]:
        left = _left.get(self.run.model)
        slots = [v for lists in slot_lists(optimizer) for v in lists.values()]
        return {
            "iterations": int(self.run.backend.read(optimizer._iterations)),
            "iterations_left": left[1] if left else None,
            "slots_norm": self._norm(optimizer),
            "slots_norm_left": left[2] if left else None,
            "slots": len(slots),
            "recompiled": left is not None and left[0]() is not optimizer,
        }

    def _norm(self, optimizer: Any) -> float:
        """L2 norm over all slots; large slots are read on the device that holds them."""
        squares = [
            float(
                keras.ops.convert_to_numpy(
                    keras.ops.sum(keras.ops.square(keras.ops.cast(v, "float32")))
                )
            )
            for lists in slot_lists(optimizer)
            for v in lists.values()
        ]
        return float(np.sqrt(sum(squares)))

    def on_released(self) -> None:
        optimizer = self._optimizer
        if optimizer is None or self.run.kind != "fit":
            return
        iterations = int(self.run.backend.read(optimizer._iterations))
        _left[self.run.model] = (weakref.ref(optimizer), iterations, self._norm(optimizer))


def _stray(optimizer: Any) -> list[dict[str, Any]]:
    """Numbers set on the optimizer under names that a new one of its class and configuration does
    not have.
    """
    config = {**optimizer.get_config(), "name": "trainsanity_fresh", "learning_rate": 0.0}
    fresh = vars(type(optimizer).from_config(config))
    rows = []
    for name, value in vars(optimizer).items():
        if name in fresh or name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, (int, float, np.number)):
            near = difflib.get_close_matches(name, list(config), n=1)
            meant = OLD_NAMES.get(name) or (near[0] if near else None)
            rows.append({"attribute": name, "value": float(value), "meant": meant})
    return rows
