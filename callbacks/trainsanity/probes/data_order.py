"""The order of the data: fingerprints of batches as they enter the step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.recording import tensors_of
from trainsanity.tape import TapeRows

ELEMENTS = 32  # of each row, evenly spread, that go into the fingerprint


class DataOrder(Probe):
    """Makes the audit `data_epoch` from two weighted sums over (a part of) every row of a batch."""

    name = "data_order"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._batches: list[tuple[float, float, float]] = []

    def trace_loss(self, step: Step) -> Columns:
        columns: dict[str, Any] = {}
        inputs = tensors_of(step.x)
        row_sums = [_row_sums(tensor) for tensor in inputs[:2] if len(tensor.shape) >= 1]
        if not row_sums:
            return columns
        rows = row_sums[0] if len(row_sums) == 1 else row_sums[0] + 1.37 * row_sums[1]
        # The place of a row counts in one sum and not in the other.
        places = ops.cast(ops.arange(ops.shape(rows)[0]), "float32") + 1.0
        columns["_fingerprint:rows"] = ops.sum(rows)
        columns["_fingerprint:places"] = ops.sum(rows * ops.sqrt(places))
        return columns

    def on_epoch_begin(self, epoch: int) -> None:
        self._batches = []

    def on_rows(self, rows: TapeRows) -> Columns:
        parts = [
            rows.columns.get(n) for n in ("_fingerprint:rows", "_fingerprint:places", "batch/size")
        ]
        columns = [part.tolist() for part in parts if part is not None]
        if len(columns) == len(parts):
            self._batches.extend(zip(*columns, strict=True))
        return {}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if not self._batches:
            return
        array = np.array(self._batches, np.float32)
        self.run.audit(
            "data_epoch",
            {
                "epoch": epoch,
                "batches": len(array),
                "rows": int(array[:, 2].sum()),
                "order": _digest(array),
                "content": _digest(array[np.lexsort(array.T)]),
                "distinct_batches": len(np.unique(array, axis=0)),
                "distinct_rows": None,
                "dataset_rows": self._dataset_rows(),
                "dataset_distinct": None,
            },
        )

    def _dataset_rows(self) -> int | None:
        fit = self.run.fit
        if fit is None or fit.data_kind != "arrays":
            return None
        leaves = keras.tree.flatten(fit.get("x"))
        return int(leaves[0].shape[0]) if leaves and hasattr(leaves[0], "shape") else None


def _row_sums(tensor: Any) -> Any:
    """One number for each row: a sum over some of its elements with irregular weights; shape
    (batch,).
    """
    tensor = ops.cast(tensor, "float32")
    tensor = ops.where(ops.isfinite(tensor), tensor, ops.ones_like(tensor))
    if len(tensor.shape) == 1:
        return tensor
    inner = tensor.shape[1:]
    if None in inner:
        return ops.sum(ops.reshape(tensor, (ops.shape(tensor)[0], -1)), axis=1)
    size = int(np.prod(inner))
    chosen = np.unique(np.linspace(0, size - 1, min(ELEMENTS, size)).astype(np.int32))
    flat = ops.take(ops.reshape(tensor, (-1, size)), chosen, axis=1)
    weights = (np.cos(1.7 * np.arange(len(chosen))) + 1.5).astype(np.float32)
    return ops.sum(flat * ops.convert_to_tensor(weights), axis=1)


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=12).hexdigest()
