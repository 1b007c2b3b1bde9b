"""Losses that only their own code can compute: whether sample weights change them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainsanity.difference import array_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import as_in_training, call_model, refused, untouched
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import rows_of


class WeightsUsed(Probe):
    """Makes the audit `weights_used` on the captured rows, where weights came with the data and the
    loss cannot be recomputed: a compute_loss or `Loss.__call__` of the user's.
    """

    name = "weights_used"
    cost = 0.1

    def on_sample(self) -> None:
        model = self.run.model
        x, y, weight = self.run.sample
        declared = self.run.fit.get("class_weight") if self.run.fit is not None else None
        if y is None or (weight is None and not declared):
            raise CannotAudit("no sample weights came with the data")
        if not _is_own(model):
            raise CannotAudit("the loss is Keras' own, and recomputed at every step")
        ramp = np.linspace(1.0, 2.0, rows_of(x), dtype="float32")
        even = np.ones_like(ramp) if weight is None else weight
        uneven = keras.tree.map_structure(lambda part: _times(part, ramp), even)
        with untouched(model), refused("the loss of the captured rows raises"):
            prediction = call_model(model, x, training=False)
            losses = [_loss(model, x, y, prediction, given) for given in (even, even, uneven)]
        self.run.audit(
            self.name,
            {"loss": losses[0], "again": losses[1], "other_weights": losses[2], "rows": len(ramp)},
        )


def _is_own(model: Any) -> bool:
    if not is_of_keras(type(model).compute_loss):
        return True
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    return any(not is_of_keras(type(entry.loss).__call__) for entry in flat)


def _times(weight: Any, ramp: Any) -> Any:
    weight = np.asarray(weight)
    return weight * ramp.reshape((-1,) + (1,) * (weight.ndim - 1))


def _loss(model: Any, x: Any, y: Any, prediction: Any, weight: Any) -> float:
    # A compute_loss of the user's need not know arrays.
    x, y, weight = as_in_training((x, y, weight))
    with keras.StatelessScope():
        loss = model.compute_loss(x=x, y=y, y_pred=prediction, sample_weight=weight)
    return float(array_of(loss).sum())
