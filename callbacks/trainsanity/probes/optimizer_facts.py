"""The optimizer: what it is, what was set on it in vain, and what the fit before left in it."""

from __future__ import annotations

import difflib
import math
import weakref
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from trainsanity import optimizers
from trainsanity.difference import numpy_of
from trainsanity.forward import names_untouched
from trainsanity.norms import square_sum
from trainsanity.probes.probe import Probe
from trainsanity.shadow import ELEMENTWISE

# Names that other versions and frameworks give to arguments of ours.
OLD_NAMES = {
    "lr": "learning_rate",
    "decay": "weight_decay",
    "eps": "epsilon",
    "alpha": "learning_rate",
}

MOST_MOVED = 1_000_000  # elements of a slot that are moved to the host to be added up

# Model -> (optimizer, iterations, norm of the slots) at the end of the last watched fit.
_left: weakref.WeakKeyDictionary[Any, tuple[Any, int, float]] = weakref.WeakKeyDictionary()


class OptimizerFacts(Probe):
    """Makes the audits `optimizer` and `optimizer_state`."""

    name = "optimizer_facts"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._numbers: dict[str, float] | None = None  # set on the optimizer, when last told of

    def on_begin(self) -> None:
        optimizer = self.run.optimizer
        if optimizer is None or self.run.kind != "fit":
            return
        if len(optimizers.parts(optimizer)) == 1:
            self._tell(optimizer, 0)
        else:
            reason = "several optimizers share the weights, each with a learning rate of its own"
            self.run.audit("optimizer", {"not_testable": reason}, 0)
        self.run.audit("optimizer_state", self._state(optimizer), 0)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        # A callback may set an attribute at any time.
        if self._numbers is not None and self._numbers != _numbers(self.run.optimizer):
            with names_untouched():
                self._tell(self.run.optimizer, self.run.step)

    def _tell(self, optimizer: Any, step: int) -> None:
        self._numbers = _numbers(optimizer)
        self.run.audit("optimizer", self._facts(optimizer), step)

    def _facts(self, optimizer: Any) -> dict[str, Any]:
        worker = optimizers.working(optimizer)
        rate = worker._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            kind = "schedule"
        elif optimizers.is_python_rate(rate):
            kind = "callable"
        else:
            kind = "number"
        return {
            "class": type(worker).__name__,
            "element_wise": type(worker).__name__ in ELEMENTWISE,
            "learning_rate_kind": kind,
            "learning_rate": float(numpy_of(worker.learning_rate)),
            "stray": _stray(worker),
        }

    def _state(self, optimizer: Any) -> dict[str, Any]:
        left = _left.get(self.run.model)
        slots = _slots(optimizer)
        return {
            "iterations": optimizers.updates(optimizer, self.run.backend.read),
            "iterations_left": left[1] if left else None,
            "slots_norm": self._norm(optimizer),
            "slots_norm_left": left[2] if left else None,
            "slots": len(slots),
            "recompiled": left is not None and left[0]() is not optimizer,
        }

    def _norm(self, optimizer: Any) -> float:
        """L2 norm over all slots."""
        return math.sqrt(sum(map(self._square_sum, _slots(optimizer))))

    def _square_sum(self, slot: Any) -> float:
        if math.prod(slot.shape) <= MOST_MOVED:
            return square_sum(self.run.backend.read(slot))
        squares = keras.ops.square(keras.ops.cast(slot, "float32"))
        return float(numpy_of(keras.ops.sum(squares)))

    def on_released(self) -> None:
        optimizer = self.run.optimizer
        if optimizer is None or self.run.kind != "fit":
            return
        iterations = optimizers.updates(optimizer, self.run.backend.read)
        _left[self.run.model] = (
            weakref.ref(optimizer),
            iterations,
            self._norm(optimizer),
        )


def _slots(optimizer: Any) -> list[Any]:
    """Slot variables of an optimizer, of those it wraps too."""
    parts = optimizers.parts(optimizers.working(optimizer))
    return [v for part in parts for lists in optimizers.slot_lists(part) for v in lists.values()]


def _numbers(optimizer: Any) -> dict[str, float]:
    """Numbers that are plain attributes of the optimizer that moves the weights."""
    return {
        name: float(value)
        for name, value in vars(optimizers.working(optimizer)).items()
        if not name.startswith("_")
        and isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
    }


def _stray(optimizer: Any) -> list[dict[str, Any]]:
    """Numbers set on the optimizer under names that a new one of its class and configuration does
    not have.
    """
    other = optimizers.fresh(optimizer, name="trainsanity_fresh", learning_rate=0.0)
    if other is None:
        return []
    fresh, config = vars(other), optimizers.config_of(optimizer)
    rows = []
    for name, value in _numbers(optimizer).items():
        if name not in fresh:
            near = difflib.get_close_matches(name, list(config), n=1)
            meant = OLD_NAMES.get(name) or (near[0] if near else None)
            rows.append({"attribute": name, "value": value, "meant": meant})
    return rows
