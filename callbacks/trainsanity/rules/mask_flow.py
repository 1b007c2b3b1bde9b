"""The way of a mask through the layers, as the audit `mask_flow` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainsanity.rules.comparison import maps, real, text
from trainsanity.rules.history import RunView

# What the user wrote where Keras records an operation of this class (keras/src/backend/common/
# keras_tensor.py).
OPERATORS = {
    "Add": "+",
    "Subtract": "-",
    "Multiply": "*",
    "Divide": "/",
    "TrueDivide": "/",
    "FloorDivide": "//",
    "Mod": "%",
    "Power": "**",
    "Matmul": "@",
    "Negative": "-",
    "Absolute": "abs()",
    "GetItem": "[ ]",
}
# The layer that does the same and carries the mask.
_LAYERS = {
    "Add": "Add()([x, y])",
    "Subtract": "Subtract()([x, y])",
    "Multiply": "Multiply()([x, y])",
}


@dataclass(frozen=True)
class FlowLayer:
    """One layer or operation of the mask flow.

    Attributes:
        is_operation: an operator or a function of `keras.ops` instead of a layer.
        legal: whether a mask may end here; None where that is not known.
        produced: whether a mask begins here.
        site: the user's line, e.g. "model.py:41"; empty where unknown.
        inputs: names of the layers whose outputs go in.
        stripped_by: the attention layer that took the mask off one of these inputs; else empty.
    """

    name: str
    kind: str
    is_operation: bool
    produced: bool
    legal: bool | None
    coverage_in: float | None
    coverage_out: float | None
    site: str
    inputs: tuple[str, ...] = ()
    stripped_by: str = ""

    def in_words(self) -> str:
        """`` `add_1` (operator `+`, model.py:41) ``"""
        if self.is_operation and self.kind in OPERATORS:
            what = f"operator `{OPERATORS[self.kind]}`"
        elif self.is_operation:
            what = self.kind if " " in self.kind else f"operation {self.kind}"
        else:
            what = f"layer {self.kind}"
        return f"`{self.name}` ({', '.join(part for part in (what, self.site) if part)})"

    def cause(self) -> str:
        """Why it died here, where another layer is to blame; else empty."""
        if not self.stripped_by:
            return ""
        return (
            f"One of its inputs also goes into `{self.stripped_by}`, and Keras' MultiHeadAttention "
            "takes the mask off the tensors it is given."
        )

    def remedy(self) -> str:
        """What to change so that the mask goes on."""
        if self.stripped_by:
            return (
                "Give the attention a tensor of its own, e.g. normalize first: "
                "MultiHeadAttention(...)(h, h) with h = LayerNormalization()(x), then "
                "Add()([x, attended]); or give padding a sample weight of 0."
            )
        if self.is_operation and self.kind in _LAYERS:
            return (
                f"Write keras.layers.{_LAYERS[self.kind]} instead of the operator "
                f"`{OPERATORS[self.kind]}`: layers carry masks on, operators do not."
            )
        if self.is_operation:
            what = f"operation {self.kind}" if self.kind and " " not in self.kind else "operation"
            return (
                f"Put the {what} into a layer of your own with "
                "`self.supports_masking = True`: operations do not carry masks on."
            )
        return (
            f"Let {self.kind} carry the mask: set `self.supports_masking = True` in its __init__ "
            "if its output has the positions of its input, else give it a `compute_mask`; or give "
            "padding a sample weight of 0."
        )


def flow_layers(run: RunView) -> dict[str, FlowLayer]:
    """Layers of the mask flow by name, in the order in which they run; empty without the audit."""
    if not run.has_audit("mask_flow"):
        return {}
    found = [flow_layer(facts) for facts in maps(run.audit("mask_flow").facts, "layers")]
    return {layer.name: layer for layer in found if layer.name}


def first_lost(run: RunView, output: str) -> FlowLayer | None:
    """Where the mask of this output was lost; None where it was not, or that is not known."""
    name = text(_output(run, output), "first_lost")
    if name is None:
        return None
    layers = flow_layers(run)
    lost = layers.get(name, FlowLayer(name, "", False, False, None, None, None, ""))
    return replace(lost, stripped_by=_stripper(lost, list(layers.values())))


def _stripper(lost: FlowLayer, layers: list[FlowLayer]) -> str:
    """The attention layer that shares an input with this one.

    Keras 3.15 removes the mask from query, key and value themselves, so whatever else reads them
    finds none (keras/src/layers/attention/multi_head_attention.py, `call`).
    """
    shared = (
        layer.name
        for layer in layers
        if layer.kind == "MultiHeadAttention" and set(layer.inputs) & set(lost.inputs)
    )
    return next(shared, "")


def last_made(run: RunView, output: str) -> FlowLayer | None:
    """The layer that made or changed the mask last, behind all embeddings and Masking layers."""
    made = [
        layer
        for layer in flow_layers(run).values()
        if layer.coverage_out is not None
        and layer.kind not in ("Embedding", "Masking")
        and (layer.produced or layer.coverage_out != layer.coverage_in)
    ]
    return made[-1] if made else None


def is_aligned(run: RunView, output: str) -> bool:
    """Whether this output has the positions of the mask; True where that is not known."""
    flow = _output(run, output)
    if not flow:
        return True
    lost = first_lost(run, output)
    if lost is None:
        # No mask arrives, and none was lost: it ended where it may, as at an RNN's last state.
        return flow.get("aligned") is not False and flow.get("mask", "unknown") is not None
    return flow.get("aligned") is not False and lost.legal is not True


def _output(run: RunView, output: str) -> Mapping[str, Any]:
    if not run.has_audit("mask_flow"):
        return {}
    outputs = run.audit("mask_flow").facts.get("outputs")
    if not isinstance(outputs, Mapping):
        return {}
    # A model with one output calls it by its layer's name here and by no name in signals.
    found = next(iter(outputs.values())) if len(outputs) == 1 else outputs.get(output)
    return found if isinstance(found, Mapping) else {}


def flow_layer(facts: Mapping[str, Any]) -> FlowLayer:
    """As the audit tells of it; what it does not say stays empty."""
    legal, inputs = facts.get("legal"), facts.get("inputs")
    return FlowLayer(
        name=text(facts, "name") or "",
        kind=text(facts, "class") or "",
        is_operation=facts.get("operation") is True,
        produced=facts.get("produced") is True,
        legal=legal if isinstance(legal, bool) else None,
        coverage_in=real(facts, "mask_in"),
        coverage_out=real(facts, "mask_out"),
        site=text(facts, "site") or "",
        inputs=tuple(map(str, inputs)) if isinstance(inputs, (list, tuple)) else (),
    )
