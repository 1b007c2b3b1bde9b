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
        totals = self._totals(step) if self._is_compiled_loss() else {}
        columns.update({f"_loss:{variant}": value for variant, value in totals.items()})
        for variant in ("recomputed", "unweighted"):
            if variant in totals:
                columns[f"_loss:{variant}"] = totals[variant] + added
        if totals:
            columns.update(_elements(step))
            columns.update(self._by_position(step))
        return columns

    def _totals(self, step: Step) -> dict[str, Any]:
        """The loss of the batch in each variant, over all outputs; empty where one is unknown."""
        totals: dict[str, Any] = {}
        for output in step.outputs:
            if output.loss is None:
                continue
            parts = self._parts(step, output)
            if parts is None:
                return {}
            for variant, value in parts.items():
                scaled = value if output.loss_weight is None else value * output.loss_weight
                totals[variant] = totals.get(variant, 0.0) + scaled
        return totals

    def _by_position(self, step: Step) -> Columns:
        """Sum and number of what the loss counts; where it is a masked mean of one output."""
        scored = [output for output in step.outputs if output.loss is not None]
        if len(scored) != 1 or self.run.model.losses:
            return {}
        parts = step.shared.get(("loss_positions", scored[0].name))
        if parts is None or scored[0].loss.reduction != "sum_over_batch_size":
            return {}
        total, count = parts
        factor = 1.0 if scored[0].loss_weight is None else scored[0].loss_weight
        return {"_loss:position:n": total * factor, "_loss:position:d": count}

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
        if step.given[2] is not None:
            parts["unweighted"] = _reduce(values, None, mask, loss.reduction)
        if mask is not None:
            total = _sum_of(values, product(weight, mask))
            step.shared[("loss_positions", output.name)] = (total, ops.sum(mask))
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
        if "_loss:unweighted" in rows.columns:
            found["loss/batch_unweighted"] = rows.columns["_loss:unweighted"]
        if "_loss:position:n" in rows.columns:
            n, d = (rows.columns[f"_loss:position:{part}"] for part in "nd")
            found["loss/by_position"] = means.extend("by_position", n, d)
        return found


def _elements(step: Step) -> Columns:
    """Elements of the unreduced losses, and the most there can be without broadcasting."""
    elements, expected = ops.zeros(()), ops.zeros(())
    for output in step.outputs:
        values = step.shared.get(("loss_values", output.name))
        if values is not None:
            elements = elements + _size(values)
            labels = ops.convert_to_tensor(output.y_true)
            expected = expected + ops.maximum(_size(labels), _size(output.y_pred))
    return {"loss/elements": elements, "loss/expected_elements": expected}


def _size(tensor: Any) -> Any:
    shape = ops.shape(tensor) or (1,)
    return ops.cast(ops.prod(ops.convert_to_tensor(shape, "int32")), "float32")


def _sum_of(values: Any, counted: Any | None) -> Any:
    """The weighted sum; what does not count adds nothing, whatever its value."""
    if counted is None:
        return ops.sum(values)
    return ops.sum(ops.where(counted != 0, values * counted, ops.zeros_like(values)))


def _reduce(values: Any, weight: Any | None, mask: Any | None, reduction: str) -> Any:
    """The reduction of `keras.losses.Loss`, written anew (compare keras/src/losses/loss.py).

    With a mask, "sum_over_batch_size" divides by the unmasked positions, not by the weights' sum.
    """
    counted = product(weight, mask)
    total = _sum_of(values, counted)
    if reduction == "sum":
        return total
    if reduction == "mean_with_sample_weight" and counted is not None:
        return ops.divide_no_nan(total, ops.sum(counted))
    return ops.divide_no_nan(total, _size(values) if mask is None else ops.sum(mask))


def _nonfinite(tensor: Any) -> Any:
    if not backend.is_float_dtype(backend.standardize_dtype(tensor.dtype)):
        return ops.zeros(())
    return ops.sum(ops.cast(ops.logical_not(ops.isfinite(tensor)), "float32"))
