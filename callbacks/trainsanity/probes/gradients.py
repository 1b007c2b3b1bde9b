"""Gradients as the optimizer receives them."""

from __future__ import annotations

from typing import Any

from keras import ops

from trainsanity.probes.probe import Columns, Probe, Update

# kind of clipping -> argument of the optimizer
CLIPPING = {"value": "clipvalue", "norm": "clipnorm", "global_norm": "global_clipnorm"}


class Gradients(Probe):
    """Per batch: the global norm, and whether anything in it is NaN or infinite."""

    name = "gradients"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self.without: list[str] = []  # paths of variables for which no gradient arrived

    def trace_before_update(self, update: Update) -> None:
        # Before: dynamic loss scaling changes its factor in the update.
        optimizer = update.optimizer
        scale = getattr(optimizer, "dynamic_scale", None)
        if scale is None:
            scale = optimizer.loss_scale_factor
        update.shared["loss_scale"] = None if scale is None else ops.cast(scale, "float32")

    def trace_after_update(self, update: Update) -> Columns:
        pairs = list(zip(update.gradients, update.variables, strict=True))
        self.without = [v.path for g, v in pairs if g is None]
        self.run.shared["gradient_paths"] = [v.path for g, v in pairs if g is not None]
        self.run.shared["no_gradient_paths"] = self.without
        squares = [self.run.backend.square_sum(g) for g, _ in pairs if g is not None]
        if not squares:
            return {}
        total = ops.sum(ops.stack(squares))
        scale = update.shared["loss_scale"]
        norm = ops.sqrt(total)
        if scale is not None:
            norm = norm / scale
        finite = ops.isfinite(total)
        columns = {
            "gradient/norm": norm,
            "gradient/nonfinite": ops.cast(ops.logical_not(finite), "float32"),
            **self._clipped(update),
        }
        if hasattr(update.optimizer, "inner_optimizer"):
            finite = update.optimizer.check_finite(update.gradients)
            columns["_loss_scale:skipped"] = 1.0 - ops.cast(finite, "float32")
        return columns

    def _clipped(self, update: Update) -> Columns:
        """The bound that was declared, and the gradients after clipping."""
        optimizer = getattr(update.optimizer, "inner_optimizer", update.optimizer)
        bounds = ((kind, getattr(optimizer, name, None)) for kind, name in CLIPPING.items())
        kind, bound = next((pair for pair in bounds if pair[1] is not None), ("", None))
        if bound is None:
            return {}
        columns: dict[str, Any] = {f"clip:{kind}/declared": ops.full((), float(bound))}
        clipped = [g for g in update.shared.get("clipped", ()) if g is not None]
        if clipped:
            columns[f"clip:{kind}/applied"] = self._size(kind, clipped)
        else:
            self.run.not_testable[f"clip:{kind}/applied"] = (
                "clipping happens in a branch of the update: gradients are accumulated, or the "
                "loss is scaled"
            )
        return columns

    def _size(self, kind: str, gradients: list[Any]) -> Any:
        """What the kind of clipping bounds, of these gradients."""
        backend = self.run.backend
        if kind == "value":
            parts = [ops.max(ops.abs(backend.dense_part(g))) for g in gradients]
            return ops.max(ops.stack([ops.cast(part, "float32") for part in parts]))
        squares = ops.stack([backend.square_sum(g) for g in gradients])
        return ops.sqrt(ops.max(squares) if kind == "norm" else ops.sum(squares))
