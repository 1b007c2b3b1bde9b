"""Masks: which positions are real by the input, which the loss counts, which the metrics count."""

from __future__ import annotations

from typing import Any

from keras import backend, ops

from trainsanity.probes.probe import Columns, OutputEvidence, Probe, Step
from trainsanity.probes.weighting import real_positions, source_ids, spread


class Masks(Probe):
    """Per batch and output: coverage of the mask at the input, at the loss and at the metrics."""

    name = "masks"

    def trace_loss(self, step: Step) -> Columns:
        columns: dict[str, Any] = {}
        for output in step.outputs:
            columns.update(self._coverage(step, output, "loss_coverage"))
            columns.update(self._credit(step, output))
        return columns

    def trace_metrics(self, step: Step) -> Columns:
        columns: dict[str, Any] = {}
        for output in step.outputs:
            columns.update(self._coverage(step, output, "metric_coverage"))
        return columns

    def _coverage(self, step: Step, output: OutputEvidence, witness: str) -> Columns:
        quantity = output.quantity("mask")
        real = real_positions(step, output, self.run.model)
        columns: dict[str, Any] = {}
        if real is not None and witness == "loss_coverage":
            columns[f"{quantity}/input_coverage"] = _share(real)
        if real is not None or output.mask is not None:
            counted = output.mask
            columns[f"{quantity}/{witness}"] = ops.ones(()) if counted is None else _share(counted)
        return columns

    def _credit(self, step: Step, output: OutputEvidence) -> Columns:
        real = real_positions(step, output, self.run.model)
        if real is None or not _scores_positions(output):
            return {}
        quantity = output.quantity("mask")
        carried = ops.ones_like(real) if output.mask is None else ops.cast(output.mask, "bool")
        counted = carried
        if output.sample_weight is not None:
            # Positions of weight 0 do not count: weights may do the work of a mask.
            weight = spread(ops.convert_to_tensor(output.sample_weight), ops.cast(real, "float32"))
            counted = carried if weight is None else carried & (weight != 0)
        columns = {
            f"{quantity}/padding_credit": _share_of(counted & ~real, counted),
            f"{quantity}/real_uncounted": _share_of(real & ~carried, real),
        }
        target = _target_padding(output)
        if target is not None:
            columns[f"{quantity}/target_padding"] = _share_of(counted & target, counted)
            columns[f"{quantity}/input_target_padding"] = _share_of(real & target, real)
            per_row = ops.sum(ops.cast(counted & real & target, "float32"), axis=1)
            columns[f"{quantity}/target_padding_most"] = ops.max(per_row)
            columns.update(_next_input(step, output, real))
        return columns


def _scores_positions(output: OutputEvidence) -> bool:
    """Whether the loss is one of Keras' own, which count every unmasked position; a loss of the
    user's may mask itself.
    """
    module = type(output.loss).__module__
    function = getattr(output.loss, "fn", None)
    if function is not None:
        module = getattr(function, "__module__", "")
    ignores = getattr(output.loss, "ignore_class", None) is not None
    return module.startswith("keras.") and not ignores


def _target_padding(output: OutputEvidence) -> Any | None:
    """Where an integer target `(batch, time)` is the padding id 0; None for other targets."""
    target = _integer_target(output)
    return None if target is None else target == 0


def _integer_target(output: OutputEvidence) -> Any | None:
    y = output.y_true
    if not backend.is_int_dtype(backend.standardize_dtype(y.dtype)):
        return None
    if len(y.shape) == 3 and y.shape[-1] == 1:
        y = ops.squeeze(y, -1)
    if len(y.shape) != 2 or y.shape[1] != output.y_pred.shape[1] or y.shape[1] is None:
        return None
    return y


def _next_input(step: Step, output: OutputEvidence, real: Any) -> Columns:
    """How many targets are the id that follows in the input, of those that have one."""
    ids, target = source_ids(step, output), _integer_target(output)
    if ids is None or target is None or ids.shape[1] != target.shape[1]:
        return {}
    followed = real[:, :-1] & real[:, 1:]
    equal = ops.cast(target[:, :-1], "int32") == ops.cast(ids[:, 1:], "int32")
    name = f"{output.quantity('mask')}/target_next_input"
    return {name: _share_of(followed & equal, followed)}


def _share(mask: Any) -> Any:
    return ops.mean(ops.cast(mask, "float32"))


def _share_of(part: Any, whole: Any) -> Any:
    return ops.divide_no_nan(
        ops.sum(ops.cast(part, "float32")), ops.sum(ops.cast(whole, "float32"))
    )
