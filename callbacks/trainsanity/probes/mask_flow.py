"""The way of the mask through the layers: where it was made, how far it came, where it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from trainsanity import call_sites
from trainsanity.difference import numpy_of
from trainsanity.masking import mask_of
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes, tensors_of


class MaskFlow(Probe):
    """Runs the captured sample through the model once and follows the mask."""

    name = "mask_flow"

    def on_begin(self) -> None:
        if not any(_makes_mask(layer) for layer in self.run.model._flatten_layers()):
            reason = "no layer of the model makes a mask"
            self.run.audit("mask_flow", {"not_testable": reason}, 0)

    def on_sample(self) -> None:
        run = self.run
        if not any(_makes_mask(layer) for layer in run.model._flatten_layers()):
            return
        found = Passes.of(run).inference
        run.audit("mask_flow", _flow(run.model, found.calls, found.result))


def _makes_mask(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def _listed(calls: list[Call]) -> list[Call]:
    """Calls in the order in which they ended; no models, no insides of Keras' own layers."""
    calls = sorted(calls, key=lambda call: call.ended)
    return [c for c in calls if not isinstance(c.operation, keras.Model) and not _is_inside(c)]


def _is_inside(call: Call) -> bool:
    """Whether Keras' own layer made this call: cells in their loop, projections of attention."""
    caller = call.caller
    return caller is not None and (
        not isinstance(caller.operation, keras.Model) and is_of_keras(type(caller.operation))
    )


def _flow(model: Any, calls: list[Call], prediction: Any) -> dict[str, Any]:
    calls = _listed(calls)
    makers = {id(t): call for call in calls for t in call.outputs}
    layers: list[dict[str, Any]] = []
    last_masked: Call | None = None
    lost_at: str | None = None
    for call in calls:
        facts = _facts(call, makers)
        gap = _lost_before(call, last_masked, makers) if lost_at is None else None
        if gap is not None:
            layers.append(gap)
            lost_at = gap["name"]
        layers.append(facts)
        if facts["ended"] and not facts["legal"] and lost_at is None:
            lost_at = facts["name"]
        if facts["mask_out"] is not None:
            last_masked = call
    outputs = {}
    names = getattr(model, "output_names", None) or []
    leaves = tensors_of(prediction)
    for index, tensor in enumerate(leaves):
        name = names[index] if index < len(names) and len(leaves) > 1 else "output"
        coverage = _coverage(mask_of(tensor))
        outputs[name] = {
            "mask": coverage,
            "aligned": _is_aligned(tensor, calls),
            "first_lost": lost_at if coverage is None else None,
        }
    return {"layers": layers, "outputs": outputs}


def without_their_mask(calls: list[Call]) -> Iterator[tuple[Call, Any, dict[str, Any]]]:
    """Calls of layers that take a mask and got none, as it was lost on the way: each with the mask
    and with the facts of where it was lost.
    """
    calls = _listed(calls)
    makers = {id(t): call for call in calls for t in call.outputs}
    lost: dict[int, tuple[Any, dict[str, Any]]] = {}  # id of a tensor that should have a mask
    last_masked: Call | None = None
    for call in calls:
        mask = next((m for m in call.masks_in if m is not None), None)
        found = None
        if mask is None:
            found = next((lost[id(t)] for t in call.inputs if id(t) in lost), None)
            if found is None and (gap := _lost_before(call, last_masked, makers)) is not None:
                found = (_mask_of(last_masked), gap)
        if found is not None and takes_mask(call):
            yield call, *found
        if _mask_of(call) is not None:
            last_masked = call
        elif found is not None or mask is not None:
            told = found or (mask, _facts(call, makers))
            lost |= {id(t): told for t in call.outputs if not _has_lost_time(told[0], t)}


def takes_mask(call: Call) -> bool:
    """Whether the layer's `call` has an argument for a mask."""
    signature = getattr(call.operation, "_call_signature", None)
    names = signature.parameters if signature else {}
    return any(name == "mask" or name.endswith("_mask") for name in names)


def _facts(call: Call, makers: dict[int, Call]) -> dict[str, Any]:
    mask_in = next((m for m in call.masks_in if m is not None), None)
    out = call.outputs[0] if call.outputs else None
    mask_out = _mask_of(call)
    ended = mask_in is not None and mask_out is None
    legal = _has_lost_time(mask_in, out) if ended else None
    operation = call.operation
    is_layer = isinstance(operation, keras.layers.Layer)
    return {
        "name": operation.name,
        "class": type(operation).__name__,
        "operation": not is_layer,
        "inputs": [makers[id(t)].operation.name for t in call.inputs if id(t) in makers],
        "mask_in": _coverage(mask_in),
        "mask_out": _coverage(mask_out),
        "produced": mask_in is None and mask_out is not None,
        "ended": ended,
        "legal": legal,
        "reason": _reason(operation, is_layer, legal) if ended else None,
        "site": call.site,
        "output_shape": [int(d) for d in out.shape] if out is not None else None,
    }


def _lost_before(
    call: Call, last_masked: Call | None, makers: dict[int, Call]
) -> dict[str, Any] | None:
    """A plain operation on tensors, outside every layer, between the last masked output and this
    call.
    """
    if last_masked is None or any(m is not None for m in call.masks_in):
        return None
    orphans = [t for t in call.inputs if id(t) not in makers and _same_time(t, last_masked)]
    if not orphans:
        return None
    where = None
    if call.file is not None and call.file == last_masked.file and call.line and last_masked.line:
        where = call_sites.operation_between(call.file, last_masked.line, call.line)
    line = where[0] if where else call.line
    site = f"{call_sites._short(call.file)}:{line}" if call.file else None
    mask = _coverage(_mask_of(last_masked))
    return {
        "name": where[1] if where else f"before {call.operation.name}",
        "class": (where[2] if where else None) or "operation on tensors",
        "operation": True,
        "inputs": [last_masked.operation.name],
        "mask_in": mask,
        "mask_out": None,
        "produced": False,
        "ended": True,
        "legal": False,
        "reason": f"the mask is on the output of {last_masked.operation.name!r} and not on the "
        "input of "
        f"{call.operation.name!r}: an operation on plain tensors in between does not carry it",
        "site": site,
        "output_shape": [int(d) for d in orphans[0].shape],
    }


def _mask_of(call: Call | None) -> Any:
    return call.masks_out[0] if call is not None and call.masks_out else None


def _same_time(tensor: Any, masked: Call) -> bool:
    mask = _mask_of(masked)
    return (
        mask is not None
        and len(tensor.shape) >= 3
        and tuple(tensor.shape[:2]) == tuple(mask.shape[:2])
    )


def _has_lost_time(mask: Any, out: Any) -> bool:
    """Whether an output has no longer the mask's time axis, so that the mask has nothing to say."""
    if out is None or len(out.shape) < 2 + (len(mask.shape) - 1):
        return True
    return tuple(out.shape[: len(mask.shape)]) != tuple(mask.shape)


def _reason(operation: Any, is_layer: bool, legal: bool | None) -> str:
    if legal:
        return "the output has no time axis any more"
    if not is_layer:
        return "an operation on tensors does not carry the mask; use the layer of the same meaning"
    if not operation.supports_masking:
        return "the layer does not set supports_masking = True"
    return "the layer's compute_mask returned None"


def _coverage(mask: Any) -> float | None:
    if mask is None:
        return None
    return float(np.mean(np.asarray(numpy_of(mask), np.float64)))


def _is_aligned(tensor: Any, calls: list[Call]) -> bool:
    """Whether an output has the time axis of a mask that some layer made."""
    masks = [m for call in calls if (m := _mask_of(call)) is not None]
    return any(
        len(tensor.shape) >= 3 and tuple(tensor.shape[:2]) == tuple(m.shape[:2]) for m in masks
    )
