"""The loss: as reported, as differentiated, recomputed, and over other choices of what counts."""

from __future__ import annotations

from typing import Any

from keras import backend, ops

from trainsanity.epoch_mean import EpochMean
from trainsanity.masking import mask_of
from trainsanity.probes.probe import Columns, OutputEvidence, Probe, Step
from trainsanity.probes.weighting import product, real_positions, spread_if_any
from trainsanity.tape import TapeRows

VARIANTS = ("recomputed", "unmasked", "all", "weighted")


class Losses(Probe):
    """Per batch: the compiled loss from unreduced values, under the mask, the weights, and without
    them.
    """

    name = "losses"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._means = {True: EpochMean(), False: EpochMean()}

    # inside the step

    def trace_loss(self, step: Step) -> Columns:
        added = self._added()
        columns: dict[str, Any] = {
            "loss/differentiated": ops.sum(step.loss),
            "loss/added": added,
            "loss/nonfinite": _nonfinite(step.loss),
        }
        reason = self._why_not(step)
        if reason is not None:
            self.run.not_testable["loss/recomputed"] = reason
            return columns
        totals: dict[str, Any] = {}
        for output in step.outputs:
            if output.loss is None:
                continue
            values = ops.cast(step.losses[output.loss_place], "float32")
            columns.update(_elements(columns, output, values))
            for variant, value in self._parts(step, output, values).items():
                weight = 1.0 if output.loss_weight is None else output.loss_weight
                totals[variant] = totals.get(variant, 0.0) + value * weight
        columns["_loss:recomputed"] = totals.pop("recomputed") + added
        columns.update({f"_loss:{variant}": value for variant, value in totals.items()})
        return columns

    def _why_not(self, step: Step) -> str | None:
        """Why the loss cannot be computed anew from its unreduced values; None where it can."""
        if not type(self.run.model).compute_loss.__module__.startswith("keras."):
            return "the model computes its loss by a compute_loss of its own"
        compiled = getattr(self.run.model, "_compile_loss", None)
        flat = getattr(compiled, "_flat_losses", None) or []
        known = [output for output in step.outputs if output.loss is not None]
        if not flat or len(step.losses) != len(flat) or len(known) != len(flat):
            return "the compiled losses do not belong to one output each, or cannot be watched"
        for output in known:
            values = step.losses[output.loss_place]
            is_number = len(values.shape) == 0
            if is_number and (output.sample_weight is not None or _carries(output)):
                return (
                    f"the loss {output.loss.name!r} is reduced by itself, so its positions "
                    "cannot be weighed again"
                )
            if self.run.replicas > 1 and output.loss.reduction == "sum":
                return "Keras does not divide a sum of losses by the number of replicas"
            if output.loss.reduction in (None, "none"):
                return f"the loss {output.loss.name!r} has no reduction"
        return None

    def _added(self) -> Any:
        total = ops.zeros(())
        for loss in self.run.model.losses:
            total = total + ops.sum(ops.cast(loss, "float32"))
        return total

    def _parts(self, step: Step, output: OutputEvidence, values: Any) -> dict[str, Any]:
        """The reduced loss of one output in each variant."""
        reduction = output.loss.reduction
        weight = spread_if_any(output.sample_weight, values)
        mask = product(spread_if_any(output.mask, values), spread_if_any(mask_of(values), values))
        real = real_positions(step, output, self.run)
        real = None if real is None else spread_if_any(real, values)
        parts = {"recomputed": _reduce(values, weight, mask, reduction)}
        if real is not None or mask is not None or weight is not None:
            parts["all"] = _reduce(values, None, None, reduction)
        if real is not None:
            parts["unmasked"] = _reduce(values, None, real, reduction)
        if weight is not None:
            parts["weighted"] = _reduce(values, weight, mask if real is None else real, reduction)
        if weight is not None or output.given_weight is not None:
            parts["unweighted"] = _reduce(values, None, mask, reduction)
        if mask is not None and reduction in ("sum_over_batch_size", "mean"):
            parts["positions:n"] = _reduce(values, weight, mask, "sum")
            parts["positions:d"] = ops.sum(mask)
        return parts

    # on the host

    def on_rows(self, rows: TapeRows) -> Columns:
        return self._columns(rows, self._means[True])

    def on_test_rows(self, rows: TapeRows) -> Columns:
        return self._columns(rows, self._means[False])

    def on_epoch_begin(self, epoch: int) -> None:
        self._means[True].reset()

    def on_test_begin(self) -> None:
        self._means[False].reset()

    def _columns(self, rows: TapeRows, means: EpochMean) -> Columns:
        found: dict[str, Any] = {}
        sizes = rows.columns.get("batch/size")
        if sizes is None:
            return found
        for variant in VARIANTS:
            batch = rows.columns.get(f"_loss:{variant}")
            if batch is not None:
                # Keras weighs a batch's loss by its rows (keras/src/backend/*/trainer.py,
                # `train_step`).
                found[f"loss/{variant}"] = means.extend(variant, batch * sizes, sizes)
        batch, plain = (rows.columns.get(f"_loss:{v}") for v in ("recomputed", "unweighted"))
        if batch is not None:
            found["loss/batch"] = batch
        if plain is not None:
            found["loss/batch_unweighted"] = plain + rows.columns["loss/added"]
        found.update(_by_position(rows, means))
        return found


def _by_position(rows: TapeRows, means: EpochMean) -> Columns:
    """The loss as one mean over all counted positions since the epoch began, where nothing is added
    to it.
    """
    numerator, count = (rows.columns.get(f"_loss:positions:{part}") for part in "nd")
    if numerator is None or count is None or rows.columns["loss/added"].any():
        return {}
    return {"loss/by_position": means.extend("positions", numerator, count)}


def _elements(columns: dict[str, Any], output: OutputEvidence, values: Any) -> Columns:
    """Elements in the unreduced losses of all outputs so far, and the most there can be without
    broadcasting.
    """
    most = ops.maximum(_size(output.y_true), _size(output.y_pred))
    return {
        "loss/elements": columns.get("loss/elements", 0.0) + _size(values),
        "loss/expected_elements": columns.get("loss/expected_elements", 0.0) + most,
    }


def _size(tensor: Any) -> Any:
    return ops.cast(ops.size(tensor), "float32")


def _carries(output: OutputEvidence) -> bool:
    """Whether a mask arrives with an output that has its axes."""
    mask = output.mask
    return mask is not None and len(output.y_pred.shape) >= len(mask.shape)


def _reduce(values: Any, weight: Any | None, mask: Any | None, reduction: str) -> Any:
    """The reduction of `keras.losses.Loss`, written anew (compare keras/src/losses/loss.py).

    With a mask, "sum_over_batch_size" divides by the unmasked positions, not by the weights' sum.
    """
    counted = product(weight, mask)
    if counted is None:
        total = ops.sum(values)
    else:
        total = ops.sum(ops.where(counted != 0, values * counted, ops.zeros_like(values)))
    if reduction == "sum":
        return total
    if reduction == "mean_with_sample_weight" and counted is not None:
        return ops.divide_no_nan(total, ops.sum(counted))
    return ops.divide_no_nan(total, _size(values) if mask is None else ops.sum(mask))


def _nonfinite(tensor: Any) -> Any:
    if not backend.is_float_dtype(backend.standardize_dtype(tensor.dtype)):
        return ops.zeros(())
    return ops.sum(ops.cast(ops.logical_not(ops.isfinite(tensor)), "float32"))
