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

    def trace_loss(self, step: Step) -> Columns:
        added = self._added()
        columns: dict[str, Any] = {
            "loss/differentiated": ops.sum(step.loss),
            "loss/added": added,
            "loss/nonfinite": _nonfinite(step.loss),
        }
        totals: dict[str, Any] = {}
        for output in step.outputs:
            if output.loss is None:
                continue
            parts = self._parts(step, output)
            if parts is None:
                return columns
            for variant, value in parts.items():
                scaled = value if output.loss_weight is None else value * output.loss_weight
                totals[variant] = totals.get(variant, 0.0) + scaled
        if totals and self._is_compiled_loss():
            columns.update({f"_loss:{variant}": value for variant, value in totals.items()})
            columns["_loss:recomputed"] = totals["recomputed"] + added
        return columns

    def trace_metrics(self, step: Step) -> Columns:
        reported = step.results.get("loss")
        return {} if reported is None else {"loss/reported": reported}

    def _is_compiled_loss(self) -> bool:
        """Whether the model computes its loss as compiled, not by a `compute_loss` of its own."""
        return str(type(self.run.model).compute_loss.__module__).startswith("keras.")

    def _added(self) -> Any:
        total = ops.zeros(())
        for loss in self.run.model.losses:
            total = total + ops.sum(ops.cast(loss, "float32"))
        return total

    def _parts(self, step: Step, output: OutputEvidence) -> dict[str, Any] | None:
        """The reduced loss of one output in each variant; None where the loss has no unreduced
        values.
        """
        loss = output.loss
        y_true = ops.convert_to_tensor(output.y_true, dtype=loss.dtype)
        y_pred = ops.convert_to_tensor(output.y_pred, dtype=loss.dtype)
        values = loss.call(y_true, y_pred)
        own_mask = mask_of(values)
        if len(values.shape) == 0 or loss.reduction in (None, "none"):
            self.run.not_testable["loss/recomputed"] = (
                f"the loss {loss.name!r} is reduced by itself, "
                "so its positions cannot be counted again"
            )
            return None
        values = ops.cast(values, "float32")
        step.shared[("loss_values", output.name)] = values
        weight = spread_if_any(output.sample_weight, values)
        mask = product(spread_if_any(output.mask, values), spread_if_any(own_mask, values))
        real = real_positions(step, output, self.run.model)
        real = None if real is None else spread_if_any(real, values)
        parts = {"recomputed": _reduce(values, weight, mask, loss.reduction)}
        if real is not None or mask is not None or weight is not None:
            parts["all"] = _reduce(values, None, None, loss.reduction)
        if real is not None:
            parts["unmasked"] = _reduce(values, None, real, loss.reduction)
        if weight is not None:
            parts["weighted"] = _reduce(
                values, weight, real if real is not None else mask, loss.reduction
            )
        return parts

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
            if batch is None:
                continue
            # Keras weighs a batch's loss by its rows (keras/src/backend/*/trainer.py,
            # `train_step`).
            found[f"loss/{variant}"] = means.extend(variant, batch * sizes, sizes)
            if variant == "recomputed":
                found["loss/batch"] = batch
        return found


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
    elements = ops.cast(ops.prod(ops.convert_to_tensor(ops.shape(values), "int32")), "float32")
    return ops.divide_no_nan(total, elements if mask is None else ops.sum(mask))


def _nonfinite(tensor: Any) -> Any:
    if not backend.is_float_dtype(backend.standardize_dtype(tensor.dtype)):
        return ops.zeros(())
    return ops.sum(ops.cast(ops.logical_not(ops.isfinite(tensor)), "float32"))
