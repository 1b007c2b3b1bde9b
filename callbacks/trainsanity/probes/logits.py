"""Crossentropies from probabilities, and the same from the logits behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from trainsanity.difference import array_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import refused, untouched
from trainsanity.origin import is_of_keras
from trainsanity.outputs import outputs_of
from trainsanity.probes.probe import OutputEvidence, Probe
from trainsanity.recording import Call, run_pass

Array = np.ndarray[Any, Any]
LOSSES = {
    "CategoricalCrossentropy": "softmax",
    "SparseCategoricalCrossentropy": "softmax",
    "BinaryCrossentropy": "sigmoid",
}


class Logits(Probe):
    """Makes the audit `logits` when training has ended, on the captured rows."""

    name = "logits"
    cost = 0.1

    def on_released(self) -> None:
        run = self.run
        if run.kind != "fit" or not any(_wants_probabilities(run.model)):
            return
        x, y, weight = run.sample or (None, None, None)
        if y is None:
            raise CannotAudit("no labelled sample of the data could be taken")
        with untouched(run.model), refused("the loss of the captured rows raises"):
            passed = run_pass(run.model, x, training=False)
            outputs = outputs_of(run.model, y, passed.result, weight)
            rows = [row for output in outputs for row in _rows(output, passed.calls)]
            crossed = [row for output in outputs for row in _crossed(output, passed.calls)]
        if not rows and not crossed:
            raise CannotAudit("no crossentropy of probabilities whose logits can be found")
        run.audit(self.name, {"outputs": rows, "crossed": crossed})


def _wants_probabilities(model: Any) -> Iterator[bool]:
    compiled = getattr(model, "_compile_loss", None)
    for _, loss, *_ in getattr(compiled, "_flat_losses", None) or []:
        yield type(loss).__name__ in LOSSES or hasattr(loss, "fn")


def _rows(output: OutputEvidence, calls: list[Call]) -> Iterator[dict[str, Any]]:
    kind = _kind(output.loss)
    if kind is None:
        return
    found = _logits_of(array_of(output.y_pred), LOSSES[kind], calls)
    if found is None:
        return
    layer, logits = found
    true = _exact(kind, array_of(output.y_true), logits)
    shown = array_of(output.loss.call(output.y_true, output.y_pred))
    if true is None or true.shape != shown.shape:
        return
    furthest = int(np.abs(true - shown).argmax())
    yield {
        "name": output.name,
        "loss": kind,
        "activation": layer,
        "losses": int(true.size),
        "shown": float(shown.mean()),
        "from_logits": float(true.mean()),
        "shown_furthest": float(shown.reshape(-1)[furthest]),
        "from_logits_furthest": float(true.reshape(-1)[furthest]),
    }


def _crossed(output: OutputEvidence, calls: list[Call]) -> Iterator[dict[str, Any]]:
    """A crossentropy behind the activation of the other kind: Keras may take the numbers before it
    for logits of its own kind.
    """
    kind = _kind(output.loss)
    outputs = array_of(output.y_pred)
    for activation in {"softmax", "sigmoid"} - {LOSSES.get(kind or "")}:
        found = None if kind is None else _logits_of(outputs, activation, calls)
        if found is not None:
            shown = array_of(output.loss.call(output.y_true, output.y_pred))
            plain = keras.ops.convert_to_tensor(outputs)  # without what Keras notes on a tensor
            yield {
                "name": output.name,
                "loss": kind,
                "activation": activation,
                "layer": found[0],
                "losses": int(shown.size),
                "shown": float(shown.mean()),
                "of_outputs": float(array_of(output.loss.call(output.y_true, plain)).mean()),
            }


def _kind(loss: Any) -> str | None:
    """The crossentropy that a compiled loss is; None for others, and where it smooths labels."""
    function = getattr(loss, "fn", None)
    options = getattr(loss, "_fn_kwargs", {})
    if not is_of_keras(function):
        return None
    name = str(getattr(function, "__name__", "")).replace("_", "")
    kind = next((k for k in LOSSES if k.lower() == name), None)
    plain = not any(options.get(key) for key in ("from_logits", "label_smoothing", "ignore_class"))
    return kind if plain and options.get("axis", -1) == -1 else None


def _logits_of(outputs: Array, activation: str, calls: list[Call]) -> tuple[str, Array] | None:
    """The layer that made the probabilities, and the numbers it made them of."""
    for call in reversed(calls):
        if not call.is_layer or len(call.outputs) != 1 or not call.inputs:
            continue
        if not np.array_equal(array_of(call.outputs[0]), outputs):
            continue
        layer = call.operation
        if isinstance(layer, keras.layers.Softmax):
            own = "softmax" if layer.axis == -1 else ""
        else:
            own = getattr(getattr(layer, "activation", None), "__name__", "")
        if own == activation:
            logits = _before_activation(layer, array_of(call.inputs[0]).astype(np.float64))
            return None if logits is None else (call.name, logits)
    return None


def _before_activation(layer: Any, inputs: Array) -> Array | None:
    if isinstance(layer, (keras.layers.Softmax, keras.layers.Activation)):
        return inputs
    if type(layer) is keras.layers.Dense:
        bias = array_of(layer.bias) if layer.use_bias else 0.0
        product = np.matmul(inputs, array_of(layer.kernel))  # by BLAS: once, and may be large
        return np.asarray(product + bias)
    return None


def _exact(kind: str, labels: Array, logits: Array) -> Array | None:
    """The crossentropy of each sample in float64."""
    if kind == "BinaryCrossentropy":
        if labels.shape != logits.shape:
            return None
        return np.asarray((np.logaddexp(0.0, logits) - labels * logits).mean(axis=-1))
    total = np.logaddexp.reduce(logits, axis=-1)
    if kind == "CategoricalCrossentropy":
        same = labels.shape == logits.shape
        return np.asarray(total - (labels * logits).sum(axis=-1)) if same else None
    if labels.shape == (*logits.shape[:-1], 1):
        labels = labels[..., 0]
    ids = labels.astype(np.int64)
    if ids.shape != logits.shape[:-1] or ids.min() < 0 or ids.max() >= logits.shape[-1]:
        return None
    chosen = np.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return np.asarray(total - chosen)
