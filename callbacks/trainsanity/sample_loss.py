"""The compiled loss of the captured sample, for audits that need its gradient."""

from __future__ import annotations

from typing import Any

import keras

from trainsanity.errors import CannotAudit
from trainsanity.forward import call_model
from trainsanity.origin import is_of_keras
from trainsanity.outputs import outputs_of


def refuse_unknown_loss(run: Any) -> None:
    """
    Raises:
        CannotAudit: the sample has no labels, or the loss is not the compiled one.
    """
    compiled = getattr(run.model, "_compile_loss", None)
    if run.sample is None or run.sample[1] is None or compiled is None:
        raise CannotAudit("there are no labels or no compiled loss")
    if not is_of_keras(type(run.model).compute_loss):
        raise CannotAudit("the loss is computed by the model itself")


def loss_of_sample(run: Any) -> Any:
    """In inference mode; losses that layers add are left out."""
    x, y, weight = run.sample
    prediction = call_model(run.model, x, training=False)
    total = keras.ops.zeros(())
    for output in outputs_of(run.model, y, prediction, weight):
        if output.loss is None:
            raise CannotAudit("an output has no loss of its own")
        value = output.loss(output.y_true, output.y_pred, output.sample_weight)
        factor = 1.0 if output.loss_weight is None else output.loss_weight
        total = total + keras.ops.cast(keras.ops.sum(value), "float32") * factor
    return total
