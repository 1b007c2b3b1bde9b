"""Losses of the user whose labels have other axes than the outputs, though as many elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from trainsanity.difference import array_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import as_in_training, call_model, refused, untouched
from trainsanity.origin import is_of_keras
from trainsanity.outputs import outputs_of
from trainsanity.probes.probe import OutputEvidence, Probe

Compare = Callable[[Any, Any], Any]


class LossRanks(Probe):
    """Makes the audit `loss_ranks` on the captured rows: a mean inside of the loss hides from the
    step how many elements were compared. Keras' own losses align the shapes themselves.
    """

    name = "loss_ranks"
    cost = 0.1

    def on_sample(self) -> None:
        model = self.run.model
        x, y, weight = self.run.sample
        if y is None:
            raise CannotAudit("there are no labels")
        with untouched(model), refused("the loss of the captured rows raises"):
            outputs = outputs_of(model, y, call_model(model, x, training=False), weight)
            rows = [
                _row(output, name, compare)
                for output in filter(_may_broadcast, outputs)
                for name, compare in self._own(output, alone=len(outputs) == 1)
            ]
        self.run.audit(self.name, {"outputs": rows})

    def _own(self, output: OutputEvidence, *, alone: bool) -> Iterator[tuple[str, Compare]]:
        """Code of the user's that compares labels and outputs, with its name."""
        model = self.run.model
        if is_of_keras(type(model).compute_loss):
            found = [loss for loss, *_ in output.losses if not is_of_keras(type(loss))]
            yield from ((type(loss).__name__, loss.call) for loss in found)
        elif alone:
            yield "compute_loss", lambda y, prediction: model.compute_loss(y=y, y_pred=prediction)


def _may_broadcast(output: OutputEvidence) -> bool:
    labels, outputs = tuple(output.y_true.shape), tuple(output.y_pred.shape)
    squeezed = [size for size in labels if size != 1] == [size for size in outputs if size != 1]
    return squeezed and len(labels) != len(outputs) and outputs[0] > 1


def _row(output: OutputEvidence, name: str, compare: Compare) -> dict[str, Any]:
    y, prediction = as_in_training(output.y_true), output.y_pred
    alone = [
        _mean(compare, y[i : i + 1], prediction[i : i + 1]) for i in range(int(prediction.shape[0]))
    ]
    return {
        "name": output.name,
        "loss": name,
        "label_shape": list(y.shape),
        "shape": list(prediction.shape),
        "as_given": _mean(compare, y, prediction),
        "same_shape": _mean(compare, ops.reshape(y, prediction.shape), prediction),
        "alone": sum(alone) / len(alone),
    }


def _mean(compare: Compare, y: Any, prediction: Any) -> float:
    with keras.StatelessScope():
        return float(array_of(compare(y, prediction)).mean())
