"""Layers that the model lists, and layers that run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainsanity.difference import elements_of
from trainsanity.probes.probe import Probe
from trainsanity.recording import Call, Passes


class Structure(Probe):
    """Makes the audit `structure` at the end of the first epoch, when it is known which weights get
    gradients.
    """

    name = "structure"
    cost = 0.3

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._ran: dict[int, list[Call]] | None = None
        self._called: set[int] = set()

    def on_sample(self) -> None:
        passes = Passes.of(self.run)
        self._ran = {}
        self._called = passes.inference.called | passes.training.called
        for call in passes.inference.calls + passes.training.calls:
            self._ran.setdefault(id(call.operation), []).append(call)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._hand_in()

    def on_end(self) -> None:
        self._hand_in()

    def _hand_in(self) -> None:
        if self._ran is None:
            return
        ran, self._ran = self._ran, None
        self._called |= set(self.run.shared.get("told_in_step", ()))
        layers = self.run.model._flatten_layers(include_self=False)
        self.run.audit("structure", {"layers": [self._row(x, ran.get(id(x), [])) for x in layers]})

    def _row(self, layer: Any, calls: list[Call]) -> dict[str, Any]:
        with_gradient = self.run.shared.get("gradient_paths")
        trained = layer.trainable_weights
        used = None
        if with_gradient is not None:
            used = elements_of([w for w in trained if w.path in set(with_gradient)])
        return {
            "name": layer.name,
            "class": type(layer).__name__,
            "path": layer.path or layer.name,
            "listed": True,
            "ran": len(calls) or int(id(layer) in self._called),
            "parameters": elements_of(trained),
            "parameters_with_gradient": used,
            "frozen": not layer.trainable,
            "site": next((c.site for c in calls if c.site), None),
        }
