"""What was declared for an object, and what it holds when training begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainsanity import optimizers
from trainsanity.difference import difference, hash_of
from trainsanity.forward import names_untouched, refused, untouched
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe

# Optimizer's argument -> name of the list of slots that it fills.
FILLED = {"initial_accumulator_value": ("_accumulators", "accumulator")}


class Declared(Probe):
    """Makes the audit `declared`: expected weights, slots of the optimizer, and its defaults."""

    name = "declared"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._said = False

    def on_epoch_begin(self, epoch: int) -> None:
        # By now the optimizer is built, and no update has run.
        if self._said:
            return
        self._said = True
        items = [*self._expected(), *self._slots(), *self._defaults()]
        facts = {"items": items} if items else {"not_testable": "nothing was declared"}
        self.run.audit(self.name, facts, 0)

    def _expected(self) -> list[dict[str, Any]]:
        path = self.run.settings.expect.initial_weights
        model = self.run.model
        if path is None or not model.built:
            return []
        # Making a model draws seeds.
        with untouched(model), names_untouched(), refused("loading initial_weights raises"):
            held = [np.array(self.run.backend.read(w)) for w in model.weights]
            other = keras.models.clone_model(model)
            other.load_weights(Path(path))
            expected = [np.array(self.run.backend.read(w)) for w in other.weights]
        return [
            _array_item(f"weight {w.path}", *values)
            for w, *values in zip(model.weights, expected, held, strict=True)
        ]

    @property
    def _optimizer(self) -> Any:
        return optimizers.working(self.run.optimizer)

    def _slots(self) -> list[dict[str, Any]]:
        """Slots against the argument that fills them, while no update has run."""
        optimizer = self._without_updates()
        if optimizer is None:
            return []
        items = []
        for argument, lists in FILLED.items():
            declared = getattr(optimizer, argument, None)
            slots = next((v for n in lists if (v := getattr(optimizer, n, None))), None)
            if declared is None or not slots:
                continue
            values = [np.asarray(self.run.backend.read(slot), np.float64) for slot in slots]
            furthest = max(values, key=lambda v: float(np.abs(v - declared).max(initial=0.0)))
            at = np.abs(furthest - declared).argmax() if furthest.size else 0
            items.append(self._item(argument, "slot", declared, float(furthest.reshape(-1)[at])))
        return items

    def _without_updates(self) -> Any | None:
        """The optimizer, or one like it, with its slots as they are filled."""
        optimizer = self._optimizer
        if optimizer is None:
            return None
        if optimizer.built and int(self.run.backend.read(optimizer._iterations)) == 0:
            return optimizer
        other = optimizers.fresh(optimizer, name="trainsanity_fresh", learning_rate=0.0)
        if other is not None:
            other.build([keras.Variable(np.zeros(2, "float32"), name="trainsanity_variable")])
        return other

    def _defaults(self) -> list[dict[str, Any]]:
        """Arguments for which the optimizer holds the default that Keras gives it by name, where
        its class has another.
        """
        optimizer = self._optimizer
        if not is_of_keras(type(optimizer)):
            return []
        held = optimizers.config_of(optimizer)
        with names_untouched():
            by_class, by_name = optimizers.defaults(type(optimizer))
        return [
            self._item(key, "default", value, held[key])
            for key, value in by_class.items()
            if key in by_name
            and not _same(value, by_name[key])
            and _same(held.get(key), by_name[key])
        ]

    def _item(self, name: str, kind: str, declared: Any, held: Any) -> dict[str, Any]:
        return {
            "subject": f"optimizer {type(self._optimizer).__name__}",
            "name": name,
            "kind": kind,
            "declared": declared,
            "held": held,
            "difference": None,
            "site": None,
        }


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, as numbers up to their storage in float32."""
    both_numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (a, b))
    return bool(np.float32(a) == np.float32(b)) if both_numbers else bool(a == b)


def _array_item(subject: str, declared: Any, held: Any) -> dict[str, Any]:
    return {
        "subject": subject,
        "name": "initial value",
        "kind": "expected",
        "declared": hash_of(declared),
        "held": hash_of(held),
        "difference": difference(declared, held, noise=0.0),
        "site": None,
    }
