"""Inputs as they reach the first layer with weights."""

from __future__ import annotations

from typing import Any

from keras import backend, ops

from trainsanity.backends.backend import Backend
from trainsanity.difference import is_float
from trainsanity.first_layers import first_weighted_layers
from trainsanity.probes.probe import Columns, Probe, Step


class Inputs(Probe):
    """Per batch and floating-point input: mean, deviation, range, zeros at the border of images.

    A model that is not functional does not tell which layer comes first; there the inputs are
    measured as they enter the model.
    """

    name = "inputs"
    in_all_processes = True

    def trace_loss(self, step: Step) -> Columns:
        if not step.training:
            return {}
        columns: dict[str, Any] = {}
        for name, tensor in self._inputs(step):
            quantity = f"inputs:{name}" if name else "inputs"
            columns.update(_statistics(quantity, tensor, self.run.backend))
        return columns

    see_step = trace_loss

    def _inputs(self, step: Step) -> list[tuple[str, Any]]:
        if getattr(self.run.model, "inputs", None):
            seen: dict[int, Any] = {}
            for call in step.calls:
                seen.setdefault(id(call.layer), call.inputs)
            firsts = first_weighted_layers(self.run.model)
            return [(name, seen[id(x)]) for name, x in firsts if is_float(seen.get(id(x)))]
        return [("", step.x)] if is_float(step.x) else []


def _statistics(quantity: str, tensor: Any, measures: Backend) -> Columns:
    values = ops.cast(tensor, "float32")
    least, most = measures.extremes(values)
    mean, deviation = measures.moments(values)
    columns = {
        f"{quantity}/mean": mean,
        f"{quantity}/std": deviation,
        f"{quantity}/min": least,
        f"{quantity}/max": most,
    }
    if len(values.shape) == 4 and None not in values.shape[1:]:
        columns[f"{quantity}/border_zero"] = _border_zero(values)
    return columns


def _border_zero(images: Any) -> Any:
    """Share of exact zeros among the outermost pixels."""
    if backend.image_data_format() == "channels_first":
        images = ops.transpose(images, (0, 2, 3, 1))
    zero = ops.cast(images == 0, "float32")
    height, width = zero.shape[1:3]
    edges = [zero[:, 0], zero[:, -1]][: min(height, 2)]
    sides = [zero[:, 1:-1, 0], zero[:, 1:-1, -1]][: min(width, 2)] if height > 2 else []
    flat = [ops.reshape(edge, (-1,)) for edge in edges + sides]
    return ops.mean(ops.concatenate(flat))
