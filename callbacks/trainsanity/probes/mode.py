"""Training and inference mode: who was told what, and whether it made a difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from trainsanity.difference import difference
from trainsanity.forward import (
    call_model,
    reading_weights_as,
    recurrent_states,
    untouched,
    volatile_variables,
)
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes


class Mode(Probe):
    """Makes the audit `mode` from one training pass, one inference pass, and layers called
    alone; and `mode_in_test` from what a test_step of the user's tells layers.
    """

    name = "mode"
    cost = 0.2

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._has_said_test = False

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        told = self.run.shared.get("told_in_test")
        if told and not self._has_said_test:
            self._has_said_test = True
            names = [
                layer.name
                for layer in self.run.model._flatten_layers(include_self=False)
                if any(each.flag and each.entered_with for each in told.get(id(layer), ()))
            ]
            self.run.audit("mode_in_test", {"layers_in_training": names})

    def on_sample(self) -> None:
        run = self.run
        passes = Passes.of(run)
        rows = [
            row
            for layer in run.model._flatten_layers(include_self=False)
            if (row := self._row(layer, passes.training.of(layer))) is not None
        ]
        self.run.audit("mode", {"layers": rows, "inference_state": self._moved_by_inference()})

    def _row(self, layer: Any, calls: list[Call]) -> dict[str, Any] | None:
        if not calls or not layer._call_has_training_arg or isinstance(layer, keras.Model):
            return None
        if any(
            isinstance(sub, keras.layers.Layer) for sub in layer._flatten_layers(include_self=False)
        ):
            return None  # its parts are asked themselves
        call = calls[0]
        alone_on, alone_off = (self._alone(layer, call, flag) for flag in (True, False))
        if alone_on is None or alone_off is None:
            return None
        if alone_on.shape != alone_off.shape:  # as RandomCrop of Keras 3.15
            return None
        again = self._alone(layer, call, False)
        noise = difference(alone_off, again)["largest"]
        alone = difference(alone_off, alone_on, noise=noise)
        switched = _switched_at(call)
        return {
            "name": layer.name,
            "class": type(layer).__name__,
            "effect": "statistics" if _has_statistics(layer) else "random",
            "rate": _rate(layer),
            "trainable": bool(layer.trainable),
            "received": [c.training for c in calls],
            "alone": alone,
            "acted": difference(alone_off, call.outputs[0], noise=noise),
            "declared": _is_declared(layer),
            "overridden_at": _overridden_at(call),
            "switched_at": switched.name if switched else None,
            "switched_model": switched is not None and isinstance(switched.operation, keras.Model),
            "in_step": self._in_step(layer),
            "site": call.site,
        }

    def _in_step(self, layer: Any) -> dict[str, Any] | None:
        """What the layer was told in the training step itself, which may be the user's."""
        told = self.run.shared.get("told_in_step", {}).get(id(layer))
        if not told:
            return None
        return {
            "received": [each.flag for each in told],
            "entered_with": [each.entered_with for each in told],
            "entered_model": all(each.entered_model for each in told),
        }

    def _alone(self, layer: Any, call: Call, training: bool) -> Any | None:
        """The layer's output on its captured input in one mode, nothing changed."""
        with untouched(self.run.model), reading_weights_as(layer):
            outputs = layer.call(*call.args, **{**call.kwargs, "training": training})
        leaves = keras.tree.flatten(outputs)
        return leaves[0] if hasattr(leaves[0], "shape") else None

    def _moved_by_inference(self) -> list[dict[str, Any]]:
        """Variables that one inference pass changes, seeds and recurrent states aside."""
        model, x = self.run.model, self.run.sample[0]
        weights = {id(w) for w in model.weights}
        states = {id(v) for layer in model._flatten_layers() for v in recurrent_states(layer)}
        watched = [v for v in volatile_variables(model) if id(v) in weights and id(v) not in states]
        owners = {
            id(v): layer
            for layer in model._flatten_layers()
            for v in layer._non_trainable_variables
        }
        with untouched(model):
            before = [np.array(self.run.backend.read(v)) for v in watched]
            call_model(model, x, training=False)
            after = [np.array(self.run.backend.read(v)) for v in watched]
        rows = []
        for variable, a, b in zip(watched, before, after, strict=True):
            if a.dtype.kind == "f" and not np.array_equal(a, b, equal_nan=True):
                layer = owners.get(id(variable))
                rows.append(
                    {
                        "path": variable.path,
                        "layer": layer.name if layer else None,
                        "class": type(layer).__name__ if layer else None,
                        "moved": float(np.abs(b - a).max()),
                        "scale": float(np.abs(a).max(initial=0.0)),
                    }
                )
        return rows


def _has_statistics(layer: Any) -> bool:
    return hasattr(layer, "moving_mean") or hasattr(layer, "moving_variance")


def _rate(layer: Any) -> float | None:
    rate = getattr(layer, "rate", None)
    if rate is None:
        rate = max(
            (float(getattr(layer, n, 0.0) or 0.0) for n in ("dropout", "recurrent_dropout")),
            default=0.0,
        )
    return float(rate) if isinstance(rate, (int, float)) else None


def _is_declared(layer: Any) -> bool:
    """Whether the user fixed the mode of this layer in a functional graph."""
    return any(flag is not None for flag in _recorded_flags(layer))


def _recorded_flags(operation: Any) -> list[bool | None]:
    """The `training=` of each call in a functional graph; None where the user gave none.

    Keras records the default of `call` as if it had been given, so that a given default cannot be
    told from it.
    """
    parameters = getattr(operation, "_call_signature", None)
    parameter = parameters.parameters.get("training") if parameters else None
    default = parameter.default if parameter else None
    flags = [node.arguments.kwargs.get("training") for node in operation._inbound_nodes]
    return [None if flag == default else flag for flag in flags]


def _overridden_at(call: Call) -> str | None:
    """The outermost layer that a functional graph calls with `training=False`, and that trains yet.

    Keras 3 gives every layer of a functional model the flag of the model's own call instead of the
    recorded one (keras/src/models/functional.py, `operation_fn`).
    """
    found = None
    current: Call | None = call
    while current is not None:
        flags = _recorded_flags(current.operation)
        if current.training is True and flags and all(flag is False for flag in flags):
            found = current.name
        current = current.caller
    return found


def _switched_at(call: Call) -> Call | None:
    """The outermost call that was told False by a caller that trains."""
    found = None
    current: Call | None = call
    while current is not None:
        caller = current.caller
        if current.training is False and (caller is None or caller.training is not False):
            found = current
        current = caller
    return found
