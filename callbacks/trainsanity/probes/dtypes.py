"""Dtypes: by policy, by the functional graph, and of the tensors."""

from __future__ import annotations

from typing import Any

import keras

from trainsanity.difference import dtype_of, is_float, products_of_float64
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes

# Layers that multiply by `keras.ops.matmul`; others have operations of their own.
MULTIPLY = (
    keras.layers.Dense,
    keras.layers.Attention,
    keras.layers.RNN,
    keras.layers.SimpleRNNCell,
    keras.layers.LSTMCell,
    keras.layers.GRUCell,
)


class Dtypes(Probe):
    """Makes the audit `dtypes` of floating-point outputs."""

    name = "dtypes"

    def on_sample(self) -> None:
        calls = Passes.of(self.run).inference.leaves
        rows = [
            _row(call)
            for call in calls
            if call.is_layer and call.outputs and is_float(call.outputs[0])
        ]
        facts: dict[str, Any] = {"layers": rows}
        if double := sorted({call.name for call in calls if _multiplies_float64(call)}):
            facts["float64_products"] = {"layers": double, "actual": products_of_float64()}
        self.run.audit("dtypes", facts)


def _multiplies_float64(call: Call) -> bool:
    is_double = bool(call.outputs) and dtype_of(call.outputs[0]) == "float64"
    return is_double and isinstance(call.operation, MULTIPLY)


def _row(call: Call) -> dict[str, Any]:
    layer = call.operation
    nodes = layer._inbound_nodes
    symbolic = nodes[0].output_tensors[0].dtype if nodes and nodes[0].output_tensors else None
    return {
        "name": call.name,
        "class": call.kind,
        "policy": layer.dtype_policy.name,
        "own_policy": layer.dtype_policy.name != keras.config.dtype_policy().name,
        "of_keras": is_of_keras(type(layer)),
        "compute": layer.compute_dtype,
        "symbolic": symbolic,
        "actual": dtype_of(call.outputs[0]),
        "site": call.site,
    }
