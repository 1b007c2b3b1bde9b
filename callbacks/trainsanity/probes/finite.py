"""What goes into the model and what comes out of it: elements that are NaN or infinite."""

from __future__ import annotations

from typing import Any

from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.recording import tensors_of


class Finite(Probe):
    """Per batch: how many elements of inputs and outputs are NaN or infinite."""

    name = "finite"
    in_all_processes = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        # Elsewhere a loss that is not finite gives all probes their turn at that very step; a
        # program that is compiled cannot be changed any more when its loss is known.
        self.every_batch = run.is_traced

    def trace_loss(self, step: Step) -> Columns:
        # A compute_loss of the user's may be given no inputs.
        inputs = tensors_of(step.x) or tensors_of(step.given[0])
        nonfinite = self.run.backend.nonfinite
        return {
            "inputs/nonfinite": nonfinite(inputs),
            "outputs/nonfinite": nonfinite(tensors_of(step.y_pred)),
        }

    def see_step(self, step: Step) -> Columns:
        return {"inputs/nonfinite": self.run.backend.nonfinite(tensors_of(step.x))}
