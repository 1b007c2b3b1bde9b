"""The way of a mask through the layers, as the audit `mask_flow` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """

    name: str
    kind: str
    is_operation: bool
    produced: bool
    legal: bool | None
    coverage_in: float | None
    coverage_out: float | None
    site: str

    def in_words(self) -> str:
        """`` `add_1` (operator `+`, model.py:41) ``"""
        if self.is_operation and self.kind in OPERATORS:
            what = f"operator `{OPERATORS[self.kind]}`"
        elif self.is_operation:
            what = f"operation {self.kind}"
        else:
            what = f"layer {self.kind}"
        return f"`{self.name}` ({', '.join(part for part in (what, self.site) if part)})"

    def remedy(self) -> str:
        """What to change so that the mask goes on."""
        if self.is_operation and self.kind in _LAYERS:
            return (
                f"Write keras.layers.{_LAYERS[self.kind]} instead of the operator "
                f"`{OPERATORS[self.kind]}`: layers carry masks on, operators do not."
            )
        if self.is_operation:
            return (
                f"Put the operation {self.kind} into a layer of your own with "
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
    found = [_layer(facts) for facts in maps(run.audit("mask_flow").facts, "layers")]
    return {layer.name: layer for layer in found if layer.name}


def first_lost(run: RunView, output: str) -> FlowLayer | None:
    """Where the mask of this output was lost; None where it was not, or that is not known."""
    name = text(_output(run, output), "first_lost")
    if name is None:
        return None
    unknown = FlowLayer(name, "", False, False, None, None, None, "")
    return flow_layers(run).get(name, unknown)


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
    lost = first_lost(run, output)
    ended_legally = lost is not None and lost.legal is True
    return _output(run, output).get("aligned") is not False and not ended_legally


def _output(run: RunView, output: str) -> Mapping[str, Any]:
    if not run.has_audit("mask_flow"):
        return {}
    outputs = run.audit("mask_flow").facts.get("outputs")
    if not isinstance(outputs, Mapping):
        return {}
    # A model with one output calls it by its layer's name here and by no name in signals.
    found = next(iter(outputs.values())) if len(outputs) == 1 else outputs.get(output)
    return found if isinstance(found, Mapping) else {}


def _layer(facts: Mapping[str, Any]) -> FlowLayer:
    legal = facts.get("legal")
    return FlowLayer(
        name=text(facts, "name") or "",
        kind=text(facts, "class") or "",
        is_operation=facts.get("operation") is True,
        produced=facts.get("produced") is True,
        legal=legal if isinstance(legal, bool) else None,
        coverage_in=real(facts, "mask_in"),
        coverage_out=real(facts, "mask_out"),
        site=text(facts, "site") or "",
    )
