"""How far the optimizer moves rows of embedding tables that a batch uses more than once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from trainsanity import optimizers
from trainsanity.difference import array_of, elements_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import generators_as_now, names_untouched, refused, untouched
from trainsanity.probes.probe import Probe
from trainsanity.sample_loss import loss_of_sample, refuse_unknown_loss

Array = np.ndarray[Any, Any]
RATE = 0.01  # any one serves: only the ratio of both ways is looked at
MOST_PARAMETERS = 20_000_000

# What is done to a gradient before the update, or to weights after it, the same in both ways.
WITHOUT = {
    "learning_rate": RATE,
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "loss_scale_factor": None,
}


class TableUpdates(Probe):
    """Makes the audit `table_updates` at the end of the first epoch: one update by a fresh
    optimizer, with the gradient as it comes and with the rows of one id added up.
    """

    name = "table_updates"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._done = False

    def on_epoch_sample(self, epoch: int) -> None:
        if not self._done:
            self._done = True
            self._hand_in()

    def _hand_in(self) -> None:
        run = self.run
        worker = optimizers.working(run.optimizer)
        self._refuse()
        model = run.model
        tables = [v for v in model.trainable_variables if len(v.shape) == 2]
        with untouched(model), generators_as_now(), names_untouched():
            with refused("the loss of the sample raises"):
                found = run.backend.gradients_by_row(lambda: loss_of_sample(run), tables)
            rows = [row for entry in found for row in self._compare(worker, *entry)]
        run.audit(self.name, {"optimizer": type(worker).__name__, "tables": rows})

    def _refuse(self) -> None:
        run = self.run
        refuse_unknown_loss(run)
        if run.optimizer is None:
            raise CannotAudit("there is no optimizer")
        if optimizers.accumulation(run.optimizer):
            raise CannotAudit("gradients are accumulated, which adds up their rows")
        size = elements_of(run.model.trainable_variables)
        if size > MOST_PARAMETERS:
            raise CannotAudit(f"the model has {size:,} trainable parameters")

    def _compare(
        self, worker: Any, variable: Any, indices: Any, values: Any
    ) -> Iterable[dict[str, Any]]:
        """Nothing where no row is used twice, or none gets a gradient."""
        ids, places, times = np.unique(array_of(indices), return_inverse=True, return_counts=True)
        gradients = np.asarray(array_of(values), np.float32)
        if times.max(initial=0) < 2 or not gradients.any():
            return
        moved, expected = movements(worker, self.run.backend, places, gradients)
        worst = int(np.argmax(np.where(times > 1, np.abs(moved - expected), -1.0)))
        yield {
            "variable": variable.path,
            "row": int(ids[worst]),
            "times": int(times[worst]),
            "moved": float(moved[worst]),
            "expected": float(expected[worst]),
        }


def movements(worker: Any, backend: Any, uses: Array, gradients: Array) -> tuple[Array, Array]:
    """How far one update moves each row (L2), by the gradient of each use and by their sums.

    Args:
        worker: optimizer whose class and configuration a fresh one gets.
        uses: the row that each gradient is for, 0 to rows - 1; (n,).
        gradients: (n, width), float32.
    """
    summed = np.zeros((int(uses.max()) + 1, *gradients.shape[1:]), np.float32)
    np.add.at(summed, uses, gradients)
    as_given = backend.from_rows(uses.astype("int32"), gradients, summed.shape)
    ways = (as_given, keras.ops.convert_to_tensor(summed))
    by_use, by_sum = (_moved(worker, summed.shape, gradient) for gradient in ways)
    return by_use, by_sum


def _moved(worker: Any, shape: tuple[int, ...], gradient: Any) -> Array:
    optimizer = optimizers.fresh(worker, **WITHOUT)
    if optimizer is None:
        raise CannotAudit("the optimizer cannot be made anew from its configuration")
    table = keras.Variable(np.zeros(shape, np.float32), name="trainsanity_table")
    with refused("an update of a table by a fresh optimizer raises"):
        optimizer.apply([gradient], [table])
    norms: Array = np.sqrt(np.square(np.asarray(array_of(table), np.float64)).sum(axis=1))
    return norms
