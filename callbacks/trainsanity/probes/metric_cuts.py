"""Metrics whose function makes one number of a batch: the same rows as one batch and as several."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainsanity.difference import array_of
from trainsanity.errors import CannotAudit
from trainsanity.fit_arguments import sample_of_arrays
from trainsanity.forward import as_in_training, call_model, fixed_batch, refused, untouched
from trainsanity.origin import is_of_keras
from trainsanity.outputs import outputs_of
from trainsanity.probes.metrics import compiled_metrics
from trainsanity.probes.probe import OutputEvidence, Probe
from trainsanity.recording import rows_of

BATCHES = 4  # of the training data, where that came as arrays
FEWEST = 4  # rows, of which two halves say something


class MetricCuts(Probe):
    """Makes the audit `metric_cuts` at epoch ends of metrics given to `compile` as functions of the
    user's that return one number for a batch: of the first batches of the training data, or of the
    captured rows as two.

    Keras averages such numbers over the batches of an epoch.
    """

    name = "metric_cuts"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._is_over = False

    def on_epoch_sample(self, epoch: int) -> None:
        if self._is_over:
            return
        try:
            self._look()
        except CannotAudit:  # nor in the next epoch
            self._is_over = True
            raise

    def _look(self) -> None:
        model = self.run.model
        entries = [e for e in compiled_metrics(model) if _is_own_function(e.metric)]
        if not entries:
            raise CannotAudit("no metric is a function of your own")
        (x, y, weight), size = self._data()
        if y is None or size * 2 < FEWEST:
            raise CannotAudit(f"no labelled sample of {FEWEST} rows could be taken of the data")
        rows = rows_of(x) // size * size
        with untouched(model), refused("a metric of the captured rows raises"):
            prediction = _predicted(model, x, size, rows)
            outputs = {o.place: o for o in outputs_of(model, y, prediction, weight)}
            entries = [e for e in entries if e.output in outputs]
            told = {e.key: _values(e.metric, outputs[e.output], size, rows) for e in entries}
        numbers = {key: values for key, values in told.items() if values is not None}
        if not numbers:
            raise CannotAudit("no metric is a function that returns one number for a batch")
        found = [
            {"key": key, "whole": float(v[0]), "mean": float(v[2:].mean())}
            for key, v in numbers.items()
            # Not of one that draws at random, or divides by a count that is 0.
            if v[0] == v[1] and np.isfinite(v).all()
        ]
        if found:
            self.run.audit(self.name, {"rows": rows, "batch": size, "metrics": found})

    def _data(self) -> tuple[tuple[Any, Any, Any], int]:
        """Rows, and how many make a batch."""
        run = self.run
        if run.sample is None:  # also where the model is trained on several devices
            raise CannotAudit("no sample of the data could be taken")
        batch = (run.fit and run.fit.get("batch_size")) or 32  # as Keras
        arrays = run.fit and sample_of_arrays(run.fit, BATCHES * batch)
        sample = arrays if arrays and fixed_batch(run.model) is None else run.sample
        rows = rows_of(sample[0])
        return sample, batch if rows >= 2 * batch else rows // 2


def _is_own_function(metric: Any) -> bool:
    wrapper = keras.metrics.MeanMetricWrapper
    return type(metric) is wrapper and not is_of_keras(getattr(metric, "_fn", None))


def _predicted(model: Any, x: Any, size: int, rows: int) -> Any:
    """Batch by batch, as memory holds one in training."""

    def batch(first: int) -> Any:
        part = keras.tree.map_structure(lambda leaf: leaf[first : first + size], x)
        return call_model(model, part, training=False)

    parts = [batch(first) for first in range(0, rows, size)]
    return keras.tree.map_structure(lambda *leaves: keras.ops.concatenate(leaves), *parts)


def _values(
    metric: Any, output: OutputEvidence, size: int, rows: int
) -> np.ndarray[Any, Any] | None:
    """What the metric's function makes of all rows, of all again, and of each batch; None where
    that is no single number.
    """
    labels, outputs = as_in_training(output.y_true), as_in_training(output.y_pred)
    cuts = [(0, rows), (0, rows), *((first, first + size) for first in range(0, rows, size))]
    given = metric._fn_kwargs
    values = [array_of(metric._fn(labels[a:b], outputs[a:b], **given)) for a, b in cuts]
    if any(value.size != 1 for value in values):
        return None
    return np.array([value.reshape(()) for value in values], np.float64)
