"""The batch itself: rows, NaN in inputs and outputs, ranges of ids and labels, sample weights."""

from __future__ import annotations

from typing import Any

import keras
from keras import backend, ops

from trainsanity.probes.probe import Columns, OutputEvidence, Probe, Step


class Batches(Probe):
    """Per batch: size, non-finite values, ids of every embedding, labels, sample weights."""

    name = "batches"

    def trace_loss(self, step: Step) -> Columns:
        inputs = [leaf for leaf in keras.tree.flatten(step.x) if hasattr(leaf, "shape")]
        columns: dict[str, Any] = {"batch/size": ops.shape(inputs[0])[0]}
        columns["inputs/nonfinite"] = _nonfinite(inputs)
        outputs = [leaf for leaf in keras.tree.flatten(step.y_pred) if hasattr(leaf, "shape")]
        columns["outputs/nonfinite"] = _nonfinite(outputs)
        for call in step.calls:
            if isinstance(call.layer, keras.layers.Embedding):
                columns.update(_ids(call.layer, call.inputs))
        for output in step.outputs:
            columns.update(_labels(output))
            columns.update(_weights(output))
        return columns


def _nonfinite(tensors: list[Any]) -> Any:
    """How many elements are NaN or infinite; integers are always finite."""
    total = ops.zeros(())
    for tensor in tensors:
        if backend.is_float_dtype(backend.standardize_dtype(tensor.dtype)):
            total = total + ops.sum(ops.cast(ops.logical_not(ops.isfinite(tensor)), "float32"))
    return total


def _ids(layer: Any, ids: Any) -> Columns:
    name = f"embedding:{layer.name}"
    # The ids that the table is read with: Keras casts them to int32
    # (keras/src/layers/core/embedding.py).
    ids = ops.cast(ids, "int32")
    outside = (ids < 0) | (ids >= layer.input_dim)
    return {
        f"{name}/id_min": ops.min(ids),
        f"{name}/id_max": ops.max(ids),
        f"{name}/out_of_range": ops.mean(ops.cast(outside, "float32")),
        f"{name}/input_dim": ops.full((), float(layer.input_dim)),
    }


def _labels(output: OutputEvidence) -> Columns:
    """Range of class numbers, where the loss reads the labels as such."""
    loss = output.loss
    kind = getattr(getattr(loss, "fn", None), "__name__", type(loss).__name__)
    if kind != "sparse_categorical_crossentropy":
        return {}
    quantity = output.quantity("labels")
    labels = ops.cast(output.y_true, "float32")
    columns = {f"{quantity}/min": ops.min(labels), f"{quantity}/max": ops.max(labels)}
    if output.y_pred.shape[-1] is not None:
        columns[f"{quantity}/classes"] = ops.full((), float(output.y_pred.shape[-1]))
    return columns


def _weights(output: OutputEvidence) -> Columns:
    if output.sample_weight is None:
        return {}
    quantity = output.quantity("sample_weight")
    weight = ops.cast(output.sample_weight, "float32")
    return {
        f"{quantity}/mean": ops.mean(weight),
        f"{quantity}/min": ops.min(weight),
        f"{quantity}/max": ops.max(weight),
    }
