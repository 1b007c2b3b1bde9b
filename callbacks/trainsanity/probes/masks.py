"""Masks: which positions are real by the input, which the loss counts, which the metrics count."""

from __future__ import annotations

from typing import Any

import keras
from keras import backend, ops

from trainsanity.difference import dtype_of
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Columns, OutputEvidence, Probe, Step
from trainsanity.probes.weighting import masked_source, pad_id, real_positions, spread


class Masks(Probe):
    """Per batch and output: coverage of the mask at the input, at the loss and at the metrics."""

    name = "masks"
    in_all_processes = True

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
        real = real_positions(step, output, self.run)
        if real is None and output.mask is None:
            return {}
        columns = {f"{quantity}/{witness}": self._share_or_all(output.mask)}
        if witness == "loss_coverage":
            columns[f"{quantity}/input_coverage"] = self._share_or_all(real)
        return columns

    def _share_or_all(self, mask: Any | None) -> Any:
        return 1.0 if mask is None else self.run.backend.share(mask)

    def _credit(self, step: Step, output: OutputEvidence) -> Columns:
        real = real_positions(step, output, self.run)
        if real is None or not _scores_positions(output):
            return {}
        quantity = output.quantity("mask")
        carried = ops.ones_like(real) if output.mask is None else ops.cast(output.mask, "bool")
        counted = carried
        if output.sample_weight is not None:
            # Positions of weight 0 do not count: weights may do the work of a mask.
            weight = spread(ops.convert_to_tensor(output.sample_weight), ops.cast(real, "float32"))
            counted = carried if weight is None else carried & (weight != 0)
        shares = {
            "padding_credit": (counted & ~real, counted),
            "real_uncounted": (real & ~carried, real),
        }
        columns: dict[str, Any] = {}
        target = _integer_target(output)
        if target is not None:
            padding = ops.equal(target, pad_id(self.run))
            shares["target_padding"] = (counted & padding, counted)
            shares["input_target_padding"] = (real & padding, real)
            in_row = ops.sum(ops.cast(counted & real & padding, "float32"), axis=1)
            columns[f"{quantity}/target_padding_most"] = ops.max(in_row)
            columns.update(self._of_next(step, output, target, real))
        found = self.run.backend.shares(
            *(list(sets) for sets in zip(*shares.values(), strict=True))
        )
        columns.update({f"{quantity}/{n}": v for n, v in zip(shares, found, strict=True)})
        return columns

    def _of_next(self, step: Step, output: OutputEvidence, target: Any, real: Any) -> Columns:
        """Where the target is the next input, as in models of language."""
        source = masked_source(step, output, self.run)
        ids = source[1] if source and isinstance(source[0], keras.layers.Embedding) else None
        if ids is None or ids.shape[1] != target.shape[1]:
            return {}
        both = real[:, :-1] & real[:, 1:]
        is_next = ops.equal(ops.cast(target, "int32")[:, :-1], ops.cast(ids, "int32")[:, 1:])
        (share,) = self.run.backend.shares([both & is_next], [both])
        return {f"{output.quantity('mask')}/target_next_input": share}


def _scores_positions(output: OutputEvidence) -> bool:
    """Whether the loss is one of Keras' own, which count every unmasked position; a loss of the
    user's may mask itself.
    """
    function = getattr(output.loss, "fn", None)
    ignores = getattr(output.loss, "_fn_kwargs", {}).get("ignore_class") is not None
    return is_of_keras(type(output.loss) if function is None else function) and not ignores


def _integer_target(output: OutputEvidence) -> Any | None:
    """An integer target of shape `(batch, time)`; None for other targets."""
    y = output.y_true
    if not backend.is_int_dtype(dtype_of(y)):
        return None
    if len(y.shape) == 3 and y.shape[-1] == 1:
        y = ops.squeeze(y, -1)
    if len(y.shape) != 2 or y.shape[1] != output.y_pred.shape[1] or y.shape[1] is None:
        return None
    return y
