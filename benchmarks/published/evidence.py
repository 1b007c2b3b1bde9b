"""What the published rules look at, read from a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainsanity.spooled import SpooledRun

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """A run, under the names of the field."""

    run: SpooledRun

    def series(self, name: str) -> Series:
        return np.asarray(self.run.signal(name)[1], np.float64)

    def ends(self, name: str) -> Series:
        """A signal's value at the end of each epoch."""
        steps, values = self.run.signal(name)
        last = [int(audit.facts["last_step"]) for audit in self.run.audits("epoch")]
        at = dict(zip(map(int, steps), values, strict=True))
        return np.asarray([at[step] for step in last if step in at], np.float64)

    @property
    def batch_losses(self) -> Series:
        found = self.series("loss/differentiated")
        return found if found.size else self.series("loss/reported")

    @property
    def losses(self) -> Series:
        return self.ends("loss/reported")

    @property
    def validation_losses(self) -> Series:
        return self.series("val_loss/reported")

    @property
    def accuracies(self) -> Series:
        return self.ends("accuracy/reported")

    @property
    def validation_accuracies(self) -> Series:
        return self.series("val_accuracy/reported")

    @property
    def outputs(self) -> list[dict[str, Any]]:
        columns = self.run.audits("columns")
        return list(columns[-1].facts.get("outputs", [])) if columns else []

    @property
    def has_integer_inputs(self) -> bool:
        return any(name.startswith("embedding:") for name in self.run.names)

    def input_range(self) -> tuple[float, float] | None:
        """Smallest and largest floating-point input, behind normalization."""
        ends = [
            (self.series(name), self.series(name.removesuffix("/min") + "/max"))
            for name in self.run.names
            if name.startswith("inputs") and name.endswith("/min")
        ]
        found = [(float(a.min()), float(b.max())) for a, b in ends if a.size and b.size]
        return (min(a for a, _ in found), max(b for _, b in found)) if found else None

    def kernels(self) -> list[list[dict[str, Any]]]:
        """Trained kernels (no biases) at the end of each epoch, in the order of the model."""
        return [
            [
                row
                for row in audit.facts.get("variables", [])
                if row.get("trainable") and str(row.get("path")).endswith("kernel")
            ]
            for audit in self.run.audits("weights")
        ]

    def largest_gradients(self) -> list[float]:
        """Largest element of each kernel's gradient, at the ends of all epochs."""
        found = [row.get("gradient_largest") for epoch in self.kernels() for row in epoch]
        return [largest for largest in found if largest is not None]

    def dead_relu_shares(self) -> list[float]:
        """Of the units of each layer with relu, at the ends of all epochs."""
        return [row["dead"] / row["units"] for row in self._activated("relu")]

    def saturated_shares(self) -> list[float]:
        """Of the units of each layer with sigmoid or tanh, at the ends of all epochs."""
        return [row.get("saturated") or 0.0 for row in self._activated("sigmoid", "tanh")]

    def _activated(self, *activations: str) -> list[dict[str, Any]]:
        audits = self.run.audits("units")
        rows = [row for audit in audits for row in audit.facts.get("layers", [])]
        return [row for row in rows if row.get("units") and row["activation"] in activations]

    @property
    def is_nonfinite(self) -> bool:
        """NaN or infinity in the loss, a gradient or a weight."""
        counts = ("loss/nonfinite", "gradient/nonfinite", "weights/nonfinite")
        return any(bool((self.series(name) > 0).any()) for name in counts)
