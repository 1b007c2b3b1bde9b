"""Which positions count, and how much: arithmetic that several probes share.

Shapes: a *position* is one element of the unreduced loss or metric, `(batch,)` for plain models,
`(batch, time)` for sequences. Masks are `(batch, time)`; sample weights `(batch,)`, `(batch, 1)` or
`(batch, time)`. Only operations that cannot fail at run time are used: static shapes decide what is
compared.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from trainsanity.backends.backend import ratio
from trainsanity.probes.probe import OutputEvidence, Step

if TYPE_CHECKING:
    from trainsanity.backends.backend import Backend
    from trainsanity.run import Run


def spread(weight: Any, values: Any) -> Any | None:
    """`weight` as float32 with the shape of `values`, or None where the shapes cannot agree."""
    rank = len(values.shape)
    while len(weight.shape) > rank and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, -1)
    if len(weight.shape) > rank:
        return None
    for _ in range(rank - len(weight.shape)):
        weight = ops.expand_dims(weight, -1)
    if not all(_may_fit(w, v) for w, v in zip(weight.shape, values.shape, strict=True)):
        return None
    return ops.broadcast_to(ops.cast(weight, "float32"), ops.shape(values))


def _may_fit(weight: int | None, values: int | None) -> bool:
    """Whether one size can be spread over another. Sizes that only the run knows are those that
    Keras multiplies a moment later, which a single number for the whole batch would survive.
    """
    return weight in (1, values) or (None in (weight, values) and values != 1)


def spread_if_any(weight: Any | None, values: Any) -> Any | None:
    """`spread`, where there is a weight."""
    return None if weight is None else spread(ops.convert_to_tensor(weight), values)


def spread_positions(real: Any, values: Any) -> Any | None:
    """`spread` of positions that Keras does not multiply with: None too where it could fail, as a
    loss that has averaged over time leaves other axes in its place.
    """
    later = zip(real.shape[1:], values.shape[1:], strict=False)
    return spread(real, values) if all(size in (1, v) for size, v in later) else None


def is_reduced(values: Any, y_pred: Any) -> bool:
    """Whether a loss has made one number of the whole batch, which no sample's weight can part."""
    if len(values.shape) == 0:
        return True
    return bool(values.shape[0] == 1 and y_pred.shape[0] != 1)


def mean_parts(backend: Backend, values: Any, weight: Any | None) -> tuple[Any, Any]:
    """Numerator and denominator of Keras' weighted mean over one batch; two columns.

    Keras averages each sample over its inner axes first and then sums over samples
    (keras/src/metrics/reduction_metrics.py, `reduce_to_samplewise_values`), so batches of longer
    sequences do not weigh more. Positions of weight 0 do not count, whatever their value.
    """
    values = ops.cast(values, "float32")
    inner = size_of(values, slice(1, None))

    def over_inner(tensor: Any) -> Any:
        return backend.column(ratio, [backend.total(tensor), inner])

    if weight is None:
        return over_inner(values), size_of(values, slice(0, 1))
    counted = ops.where(weight != 0, values * weight, ops.zeros_like(values))
    return over_inner(counted), over_inner(weight)


def size_of(tensor: Any, axes: slice = slice(None)) -> Any:
    """Elements of a tensor along some axes, float32; a plain number, which costs no operation,
    where they are known without running the step.
    """
    known = tuple(tensor.shape)[axes]
    if None not in known:
        return float(math.prod(known))
    return ops.cast(ops.prod(ops.convert_to_tensor(ops.shape(tensor)[axes], "int32")), "float32")


def product(*weights: Any | None) -> Any | None:
    """The product of the weights that are there; None where none is."""
    result = None
    for weight in weights:
        if weight is not None:
            result = weight if result is None else result * weight
    return result


def real_positions(step: Step, output: OutputEvidence, run: Run) -> Any | None:
    """Positions of this output that are real according to the input, `(batch, time)` bool; None
    where unknown.

    The ids that an `Embedding(mask_zero=True)` receives, or the values that a `Masking` layer
    receives, are compared with the padding here, independently of the mask that Keras computes and
    carries.
    """
    key = ("real", output.name)
    if key not in step.shared:
        step.shared[key] = _find_real_positions(step, output, run)
    return step.shared[key]


def _find_real_positions(step: Step, output: OutputEvidence, run: Run) -> Any | None:
    source = masked_source(step, output, run)
    return None if source is None else _fit_time(_real_of(*source, run), output.y_pred)


def masked_source(step: Step, output: OutputEvidence, run: Run) -> tuple[Any, Any] | None:
    """The layer that says what is padding for this output, and its input; None where several or
    none may be meant.
    """
    sources: dict[int, tuple[Any, Any]] = {}
    for call in step.calls:
        real = _real_of(call.layer, call.inputs, run)
        if real is not None and _has_time_axis(real, output.y_pred):
            sources.setdefault(id(call.inputs), (call.layer, call.inputs))
    if len(sources) > 1:
        layer = leading_source(run.model, output.name, [layer for layer, _ in sources.values()])
        sources = {k: v for k, v in sources.items() if v[0] is layer}
    return next(iter(sources.values())) if len(sources) == 1 else None


def pad_id(run: Run) -> int:
    """The id that stands for padding: as declared, else the one that `mask_zero` means."""
    declared = run.settings.expect.pad_id
    return 0 if declared is None else declared


def _real_of(layer: Any, inputs: Any, run: Run) -> Any | None:
    if isinstance(layer, keras.layers.Embedding):
        says = layer.mask_zero or run.settings.expect.pad_id is not None
        return ops.not_equal(inputs, pad_id(run)) if says and len(inputs.shape) == 2 else None
    if isinstance(layer, keras.layers.Masking) and len(inputs.shape) == 3:
        return ops.any(inputs != ops.cast(layer.mask_value, inputs.dtype), axis=-1)
    return None


def _has_time_axis(real: Any, y_pred: Any) -> bool:
    if len(y_pred.shape) < 3:
        return False
    return real.shape[1] is None or y_pred.shape[1] is None or real.shape[1] == y_pred.shape[1]


def _fit_time(real: Any, y_pred: Any) -> Any:
    if real.shape[1] is not None and real.shape[1] == y_pred.shape[1]:
        return real
    # Lengths known only at run time: cut or fill, so that a difference can never fail the step.
    known = y_pred.shape[1]
    length = ops.shape(y_pred)[1] if known is None else known
    filler = ops.zeros((ops.shape(real)[0], length), dtype="bool")
    real = ops.concatenate([real, filler], axis=1)[:, :length]
    return real if known is None else ops.reshape(real, (-1, known))


def leading_source(model: Any, output_name: str, layers: list[Any]) -> Any | None:
    """Of several masked inputs the one whose positions an output continues: the chain of first
    inputs leads to it.
    """
    outputs = getattr(model, "outputs", None)
    names = getattr(model, "output_names", None)
    if not outputs:
        return None
    tensor = outputs[names.index(output_name)] if output_name and names else outputs[0]
    while True:
        operation = getattr(getattr(tensor, "_keras_history", None), "operation", None)
        if operation is None:
            return None
        if any(operation is layer for layer in layers):
            return operation
        node = operation._inbound_nodes[tensor._keras_history.node_index]
        if not node.arguments.keras_tensors:
            return None
        tensor = node.arguments.keras_tensors[0]
