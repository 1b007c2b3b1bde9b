"""A layer by two ways that must agree: mirrored, and with its activation spelled in two ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from trainsanity.difference import array_of, difference
from trainsanity.errors import CannotAudit
from trainsanity.forward import names_untouched, refused, untouched
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes, tensors_of

MOST_LAYERS = 6  # that are made anew in two spellings


class LayerPaths(Probe):
    """Adds comparisons of the kinds `mirror` and `spelling` to the audit `paths`."""

    name = "layer_paths"
    cost = 0.9

    def on_sample(self) -> None:
        calls = [c for c in Passes.of(self.run).inference.leaves if c.is_layer and c.outputs]
        compared = [*self._mirrored(calls), *self._spelled(calls)]
        if not compared:
            raise CannotAudit("no layer is declared symmetric, and none has two spellings")
        self.run.audit("paths", {"comparisons": compared})

    # mirrored

    def _mirrored(self, calls: list[Call]) -> Iterator[dict[str, Any]]:
        """Layers that `Expect(symmetric=...)` names: the mirrored output, and the output of the
        mirrored input, along every axis but the first and the last.
        """
        for name in self.run.settings.expect.symmetric:
            call = next((call for call in calls if call.name == name), None)
            if call is None or len(call.inputs) != 1:
                raise CannotAudit(f"no layer {name!r} with one input ran; Expect(symmetric=...)")
            for axis in range(1, len(call.outputs[0].shape) - 1):
                yield self._mirror(call, axis)

    def _mirror(self, call: Call, axis: int) -> dict[str, Any]:
        with untouched(self.run.model), refused(f"{call.name} called alone raises"):
            plain, again = (self._first_output(call, call.inputs[0]) for _ in range(2))
            other = self._first_output(call, keras.ops.flip(call.inputs[0], axis=axis))
        noise = difference(plain, again)["largest"]
        return {
            "subject": f"{call.name}, axis {axis}",
            "kind": "mirror",
            "ways": ["mirrored output", "output of the mirrored input"],
            "difference": difference(keras.ops.flip(plain, axis=axis), other, noise=noise),
            "declared_follows_batch": False,
            "site": call.site,
        }

    def _first_output(self, call: Call, value: Any) -> Any:
        first = call.inputs[0]
        args, kwargs = keras.tree.map_structure(
            lambda leaf: value if leaf is first else leaf, (call.args, call.kwargs)
        )
        return tensors_of(call.operation.call(*args, **kwargs))[0]

    # spelled

    def _spelled(self, calls: list[Call]) -> Iterator[dict[str, Any]]:
        """Layers of the user's own, and recurrent ones, made anew with their activation given as
        text and as a function.
        """
        layers: dict[int, Call] = {}
        for call in calls:
            layer = call.operation
            is_own = not is_of_keras(type(layer))
            if is_own or isinstance(layer, (keras.layers.LSTM, keras.layers.GRU)):
                layers.setdefault(id(layer), call)
        for call in [*layers.values()][:MOST_LAYERS]:
            try:
                yield from self._spellings(call)
            except CannotAudit:  # not every layer of one's own can be made from its configuration
                continue

    def _spellings(self, call: Call) -> Iterator[dict[str, Any]]:
        layer = call.operation
        with refused("the layer has no configuration"):
            config = dict(layer.get_config())
        for key in [key for key in config if key.endswith("activation")]:
            function = _builtin(config[key])
            if function is None:
                continue
            with untouched(self.run.model), names_untouched(), refused(f"{call.name} raises"):
                as_text, as_function = (
                    _made(call, config | {key: v}) for v in (config[key], function)
                )
                a, again, b = (
                    tensors_of(made.call(*call.args, **call.kwargs))[0]
                    for made in (as_text, as_text, as_function)
                )
            if array_of(a).shape == array_of(b).shape:
                yield {
                    "subject": f"{call.name}, {key}",
                    "kind": "spelling",
                    "ways": [f"{key}={config[key]!r}", f"{key}=keras.activations.{config[key]}"],
                    "difference": difference(a, b, noise=difference(a, again)["largest"]),
                    "declared_follows_batch": False,
                    "site": call.site,
                }


def _builtin(name: Any) -> Any | None:
    """The activation of Keras that a text names."""
    function = getattr(keras.activations, name, None) if isinstance(name, str) else None
    return function if callable(function) else None


def _made(call: Call, config: dict[str, Any]) -> Any:
    """A layer from this configuration, with the weights of the one that was called."""
    layer = call.operation
    made = type(layer).from_config(config)
    if not made.built:
        made.build_from_config(layer.get_build_config())
    made.set_weights([array_of(w) for w in layer.weights])
    return made
