"""Whether masked positions, or later ones, change what they must not."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np

from trainsanity.difference import array_of, difference, dtype_of, is_float, numpy_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import call_model, reading_weights_as, refused, untouched
from trainsanity.masking import set_mask
from trainsanity.probes.mask_flow import takes_mask, without_their_mask
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes, tensors_of


class MaskSemantics(Probe):
    """Makes the audit `mask_semantics`: layers called again with other content where masked."""

    name = "mask_semantics"
    cost = 0.4

    def on_sample(self) -> None:
        calls = Passes.of(self.run).inference.leaves
        checks = [row for call in calls if (row := self._padding(call)) is not None]
        checks += [row for call in calls if (row := _masked_output(call)) is not None]
        checks += self._lost()
        checks += self._future()
        if not checks:
            raise CannotAudit("no layer receives a mask, and no causality is declared")
        self.run.audit(self.name, {"checks": checks})

    # padding

    def _lost(self) -> list[dict[str, Any]]:
        """Layers whose mask was lost before them."""
        unmasked = without_their_mask(Passes.of(self.run).inference.calls)
        rows = []
        for call, mask, lost in itertools.islice(unmasked, MOST_LOST):
            if _is_padded(mask) and not _is_zero_where_masked(call, mask):
                row = self._padding(call, mask, kind="lost")
                rows += [] if row is None else [row | {"lost_at": {k: lost[k] for k in LOST_AT}}]
        return rows

    def _padding(
        self, call: Call, mask: Any = None, kind: str = "padding"
    ) -> dict[str, Any] | None:
        """The mask is that on the layer's input, or one that should be there."""
        is_there = mask is None
        mask = _mask_with_padding(call) if is_there else mask
        if mask is None or len(call.inputs) < 1 or not call.outputs:
            return None
        inputs, output = call.inputs[0], call.outputs[0]
        time = tuple(mask.shape)
        if len(inputs.shape) != 3 or tuple(inputs.shape[:2]) != time or not is_float(inputs):
            return None
        other = _with_other_content(inputs, mask)
        if is_there:
            set_mask(other, mask)
        changed, again = self._again(call, other), self._again(call, inputs)
        if changed is None or again is None:
            return None
        real = _as_output(call, np.asarray(numpy_of(mask), bool))
        kept = [_valid(array_of(t), real) for t in (output, changed, again)]
        if any(k is None for k in kept):
            return None
        noise = difference(kept[0], kept[2])["largest"]
        found = difference(kept[0], kept[1], noise=noise)
        return _row(call, kind, found | {"dtype": dtype_of(output)})

    def _again(self, call: Call, value: Any) -> Any | None:
        """The layer's first output on another value in place of its first input."""
        first = call.inputs[0]
        args, kwargs = keras.tree.map_structure(
            lambda leaf: value if leaf is first else leaf, (call.args, call.kwargs)
        )
        casting = reading_weights_as(call.operation)
        with untouched(self.run.model), casting, refused(f"{call.name} called alone raises"):
            outputs = tensors_of(call.operation.call(*args, **kwargs))
        return outputs[0] if outputs else None

    # future

    def _future(self) -> list[dict[str, Any]]:
        if not self.run.settings.expect.causal:
            return []
        model, x = self.run.model, self.run.sample[0]
        leaves = keras.tree.flatten(x)
        if len(leaves) != 1 or leaves[0].ndim < 2 or leaves[0].shape[1] < 2:
            return []
        with untouched(model):
            before, again = (tensors_of(call_model(model, x, training=False))[0] for _ in range(2))
            other = np.array(leaves[0])
            half = other.shape[1] // 2
            # Other ids that occur in the data: a table holds rows for them.
            other[:, half:] = np.flip(other[:, :half].repeat(3, axis=1), axis=1)[
                :, : other.shape[1] - half
            ]
            whole = keras.tree.map_structure(lambda _: other, x)
            after = tensors_of(call_model(model, whole, training=False))[0]
        if len(before.shape) < 3 or before.shape[1] != leaves[0].shape[1]:
            return []
        noise = difference(before[:, :half], again[:, :half])["largest"]
        found = difference(before[:, :half], after[:, :half], noise=noise)
        about = {"layer": "model", "class": type(model).__name__, "uses_mask": False}
        return [{**about, "kind": "future", "difference": found, **_NO_WORDS, "site": None}]


MOST_LOST = 4  # layers whose mask was lost; further ones tell the same
LOST_AT = ("name", "class", "operation", "site")
_NO_WORDS = {"declared": None, "actual": None}


def _mask_with_padding(call: Call) -> Any | None:
    """The mask on the layer's first input, where it masks something and not everything of a row."""
    if not call.is_layer or not call.masks_in:
        return None
    mask = call.masks_in[0]
    return mask if mask is not None and _is_padded(mask) else None


def _is_padded(mask: Any) -> bool:
    """Whether it masks something, and not everything."""
    real = np.asarray(numpy_of(mask), bool)
    return real.ndim == 2 and bool(real.any()) and not real.all()


def _is_zero_where_masked(call: Call, mask: Any) -> bool:
    """Whether somebody has multiplied by the mask, and so takes care of it in their own way."""
    inputs, real = array_of(call.inputs[0]), np.asarray(numpy_of(mask), bool)
    return inputs.shape[:2] == real.shape and not inputs[~real].any()


def _with_other_content(inputs: Any, mask: Any) -> Any:
    """The tensor with what is masked turned round and moved."""
    keep = keras.ops.cast(keras.ops.expand_dims(mask, -1), inputs.dtype)
    other = keras.ops.flip(inputs, axis=2) + keras.ops.ones_like(inputs)
    return inputs * keep + other * (1 - keep)


def _valid(output: np.ndarray[Any, Any], real: np.ndarray[Any, Any]) -> Any | None:
    """What must not change: real positions; of outputs without time, all."""
    if output.ndim >= 3 and output.shape[:2] == real.shape:
        return output[real]
    if output.ndim >= 1 and output.shape[0] == real.shape[0]:
        return output[real.any(axis=1)]
    return None


def _as_output(call: Call, real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mask in the order of the output: layers that go backwards give the last step first."""
    return real[:, ::-1] if getattr(call.operation, "go_backwards", False) else real


def _masked_output(call: Call) -> dict[str, Any] | None:
    """What a recurrent layer gives at masked positions, against its flag `zero_output_for_mask`."""
    flag = getattr(call.operation, "zero_output_for_mask", None)
    mask = _mask_with_padding(call)
    if flag is None or mask is None or not getattr(call.operation, "return_sequences", False):
        return None
    real = _as_output(call, np.asarray(numpy_of(mask), bool))
    output = array_of(call.outputs[0])
    # Before the first real position there is no state but the initial one, which is zeros too.
    after = np.logical_or.accumulate(real, axis=1) & ~real
    if output.shape[:2] != real.shape or not after.any():
        return None
    words = ("carried state", "zeros")
    actual = words[bool((output[after] == 0).all())]
    row = _row(call, "masked_output", None)
    return row | {"declared": words[bool(flag)], "actual": actual}


def _row(call: Call, kind: str, found: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "layer": call.name,
        "class": call.kind,
        "kind": kind,
        "uses_mask": takes_mask(call),
        "difference": found,
        **_NO_WORDS,
        "site": call.site,
    }
