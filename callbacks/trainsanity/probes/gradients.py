"""Gradients as the optimizer receives them."""

from __future__ import annotations

from typing import Any

from keras import ops

from trainsanity.probes.probe import Columns, Probe, Update


class Gradients(Probe):
    """Per batch: the global norm, and whether anything in it is NaN or infinite."""

    name = "gradients"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self.without: list[str] = []  # paths of variables for which no gradient arrived

    def trace_after_update(self, update: Update) -> Columns:
        pairs = list(zip(update.gradients, update.variables, strict=True))
        self.without = [v.path for g, v in pairs if g is None]
        self.run.shared["gradient_paths"] = [v.path for g, v in pairs if g is not None]
        self.run.shared["no_gradient_paths"] = self.without
        squares = [self.run.backend.square_sum(g) for g, _ in pairs if g is not None]
        if not squares:
            return {}
        total = ops.sum(ops.stack(squares))
        scale = update.optimizer.loss_scale_factor
        norm = ops.sqrt(total)
        if scale is not None:
            norm = norm / ops.cast(scale, "float32")
        finite = ops.isfinite(total)
        return {
            "gradient/norm": norm,
            "gradient/nonfinite": ops.cast(ops.logical_not(finite), "float32"),
        }
