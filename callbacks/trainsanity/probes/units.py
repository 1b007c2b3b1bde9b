"""Units that are always off, and units at the end of their range."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainsanity.difference import array_of
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, run_pass

# Ends of the range of activations that saturate.
RANGES = {
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
}
NEAR = 0.01  # share of the range that counts as its end
SWITCHES_OFF = ("relu", "relu6")


class Units(Probe):
    """Makes the audit `units` at the end of each epoch from an inference pass over the sample."""

    name = "units"

    def on_epoch_sample(self, epoch: int) -> None:
        run = self.run
        if run.sample is None or not run.model.built or not self._has_activations():
            return
        calls = run_pass(run.model, run.sample[0], training=False).leaves
        outputs = {id(t) for t in calls[-1].outputs} if calls else set()
        rows = [row for call in calls if (row := _row(call, outputs)) is not None]
        run.audit("units", {"layers": rows})

    def _has_activations(self) -> bool:
        return any(_activation(layer) for layer in self.run.model._flatten_layers())


def _activation(layer: Any) -> str | None:
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    if name is None and type(layer).__name__ == "ReLU":
        name = "relu"
    return name if name in RANGES or name in SWITCHES_OFF else None


def _row(call: Call, outputs: set[int]) -> dict[str, Any] | None:
    activation = _activation(call.operation)
    # Recurrent layers and cells have their activation inside; outputs tell nothing of it.
    if activation is None or not call.outputs or hasattr(call.operation, "state_size"):
        return None
    values = array_of(call.outputs[0])
    if values.ndim < 2 or not values.size:
        return None
    flat = values.reshape(-1, values.shape[-1])
    saturated = None
    if activation in RANGES:
        low, high = RANGES[activation]
        near = NEAR * (high - low)
        saturated = float(np.mean((flat <= low + near) | (flat >= high - near)))
    return {
        "name": call.name,
        "class": call.kind,
        "activation": activation,
        "units": int(flat.shape[1]),
        "dead": int((flat == 0).all(axis=0).sum()) if activation in SWITCHES_OFF else 0,
        "saturated": saturated,
        "positions": int(flat.shape[0]),
        "output": id(call.outputs[0]) in outputs,
    }
