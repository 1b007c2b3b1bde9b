"""The batch itself: ranges of ids, labels and outputs, sample weights."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from trainsanity.backends.backend import Backend
from trainsanity.difference import is_float
from trainsanity.probes.probe import Columns, OutputEvidence, Probe, Step
from trainsanity.tape import NOTHING

BEYOND = 3.0e38  # larger than any label


class Batches(Probe):
    """Per batch: ids of every embedding, labels, sample weights, ranges of outputs."""

    name = "batches"
    in_all_processes = True

    def trace_loss(self, step: Step) -> Columns:
        columns = dict(self._given(step))
        for output in step.outputs:
            columns.update(_reached(output, self.run.backend))
            columns.update(_range(output, self.run.backend))
        return columns

    def see_step(self, step: Step) -> Columns:
        return self._given(step)

    def _given(self, step: Step) -> Columns:
        """What can be said of ids, labels and weights as they come with the batch."""
        columns: dict[str, Any] = {}
        for layer, calls in _by_embedding(step).items():
            columns.update(_ids(layer, calls, self.run.backend))
        for output in step.outputs:
            columns.update(_labels(output, self.run.backend))
            if output.given_weight is not None:
                quantity = output.quantity("sample_weight")
                weight = output.given_weight
                columns.update(_summary(f"{quantity}/given_", weight, self.run.backend))
        columns.update(self._declared_weight(step))
        return columns

    def _declared_weight(self, step: Step) -> Columns:
        """Mean weight that `class_weight` asks for; Keras takes it for one output only."""
        declared = self.run.fit.get("class_weight") if self.run.fit is not None else None
        if not declared or not step.training or len(step.outputs) != 1:
            return {}
        classes = _class_numbers(step.given[1])
        if classes is None:
            return {}
        weights = ops.ones_like(classes)
        for key, weight in declared.items():
            number = _as_number(key)
            if number is not None:
                chosen = ops.full((), float(weight))
                weights = ops.where(classes == number, chosen, weights)
        return {f"{step.outputs[0].quantity('sample_weight')}/declared_mean": ops.mean(weights)}


def _by_embedding(step: Step) -> dict[Any, list[Any]]:
    """Embedding -> ids of all its calls: a shared layer has several."""
    found: dict[Any, list[Any]] = {}
    for call in step.calls:
        if isinstance(call.layer, keras.layers.Embedding):
            found.setdefault(call.layer, []).append(call.inputs)
    return found


def _ids(layer: Any, calls: list[Any], backend: Backend) -> Columns:
    name = f"embedding:{layer.name}"
    # The ids that the table is read with: Keras casts them to int32
    # (keras/src/layers/core/embedding.py).
    ids = ops.concatenate([ops.reshape(ops.cast(call, "int32"), (-1,)) for call in calls])
    outside = (ids < 0) | (ids >= layer.input_dim)
    least, most = backend.extremes(ids)
    columns = {
        f"{name}/id_min": least,
        f"{name}/id_max": most,
        f"{name}/out_of_range": backend.share(outside),
        f"{name}/input_dim": float(layer.input_dim),
    }
    if all(map(is_float, calls)):
        given = ops.concatenate([ops.reshape(ops.cast(call, "float32"), (-1,)) for call in calls])
        cut = ops.not_equal(given, ops.floor(given))
        columns[f"{name}/not_whole"] = backend.share(cut)
    return columns


def _labels(output: OutputEvidence, backend: Backend) -> Columns:
    """Range of class numbers, where the loss reads the labels as such."""
    loss = output.loss
    kind = getattr(getattr(loss, "fn", None), "__name__", type(loss).__name__)
    if kind not in ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"):
        return {}
    quantity = output.quantity("labels")
    labels = ops.cast(output.y_true, "float32")
    ignored = option(loss, "ignore_class")
    if ignored is None:
        least, most = backend.extremes(labels)
    else:
        counts = labels != float(ignored)
        unknown = ops.full((), NOTHING)
        some = ops.any(counts)
        least = ops.where(some, ops.min(ops.where(counts, labels, ops.full((), BEYOND))), unknown)
        most = ops.where(some, ops.max(ops.where(counts, labels, ops.full((), -BEYOND))), unknown)
    columns = {f"{quantity}/min": least, f"{quantity}/max": most}
    if output.y_pred.shape[-1] is not None:
        columns[f"{quantity}/classes"] = float(output.y_pred.shape[-1])
    return columns


def _reached(output: OutputEvidence, backend: Backend) -> Columns:
    """The weights that have reached the loss."""
    quantity = output.quantity("sample_weight")
    if output.sample_weight is not None:
        return _summary(f"{quantity}/", output.sample_weight, backend)
    if output.given_weight is not None:
        return _summary(f"{quantity}/", ops.ones((1,)), backend)
    return {}


def _summary(prefix: str, weight: Any, backend: Backend) -> Columns:
    weight = ops.cast(weight, "float32")
    least, most = backend.extremes(weight)
    return {f"{prefix}mean": ops.mean(weight), f"{prefix}min": least, f"{prefix}max": most}


def _range(output: OutputEvidence, backend: Backend) -> Columns:
    """Smallest and largest element of an output, and of its sums over the last axis."""
    if not is_float(output.y_pred):
        return {}
    quantity = output.quantity("outputs")
    values = ops.cast(output.y_pred, "float32")
    least, most = backend.extremes(values)
    columns = {f"{quantity}/min": least, f"{quantity}/max": most}
    if len(values.shape) >= 2 and values.shape[-1] is not None and values.shape[-1] > 1:
        least, most = backend.extremes(ops.sum(values, axis=-1))
        columns |= {f"{quantity}/sum_min": least, f"{quantity}/sum_max": most}
    return columns


def _class_numbers(y: Any) -> Any | None:
    """The class of each row, as Keras reads labels for `class_weight`; None for other labels.

    Source: keras/src/trainers/data_adapters/data_adapter_utils.py, class_weight_to_sample_weights.
    """
    leaves = keras.tree.flatten(y)
    if len(leaves) != 1 or not 1 <= len(getattr(leaves[0], "shape", ())) <= 2:
        return None
    labels = leaves[0]
    if len(labels.shape) == 2:
        if labels.shape[-1] is None:
            return None
        single = labels.shape[-1] == 1
        labels = ops.squeeze(labels, -1) if single else ops.argmax(labels, axis=-1)
    return ops.round(ops.cast(labels, "float32"))


def _as_number(key: Any) -> float | None:
    try:
        return float(key)
    except (TypeError, ValueError):
        return None


def option(loss: Any, name: str) -> Any | None:
    """An option of a compiled loss, such as `from_logits`; None where it has no such option.

    A loss that was given by its name, or as a function, has what the function itself declares.
    """
    kwargs = getattr(loss, "_fn_kwargs", {})
    if name in kwargs:
        return kwargs[name]
    default = _default(getattr(loss, "fn", None), name)
    return getattr(loss, name, None) if default is inspect.Parameter.empty else default


def _default(function: Any, name: str) -> Any:
    """Of an argument of a function; `Parameter.empty` where it has none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # no function, or one written in C
        return inspect.Parameter.empty
    return parameters[name].default if name in parameters else inspect.Parameter.empty
