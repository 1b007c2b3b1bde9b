"""Recurrent states before and after a reset: whether it resets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from trainsanity.difference import numpy_of
from trainsanity.forward import recurrent_states, untouched
from trainsanity.probes.probe import Probe
from trainsanity.wrappers import Wrappers

NAMES = ("reset_state", "reset_states")
MOST_RESETS = 8  # of one layer, that are looked at


class StateReset(Probe):
    """Makes the audit `state_reset`: at every reset by the user, and by a reset of our own when
    training has ended, of which the layer is told nothing afterwards.
    """

    name = "state_reset"
    cost = 0.1

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._wrappers = Wrappers()
        self._inside = False
        self._looks: dict[int, int] = {}

    def on_begin(self) -> None:
        if self.run.kind != "fit" or self.run.guard is None:
            return
        for layer in self.run.model._flatten_layers():
            for name in NAMES:
                if callable(getattr(layer, name, None)) and name not in layer.__dict__:
                    reset = self._around(layer, name, getattr(layer, name))
                    self._wrappers.put(layer, name, reset)

    def _around(self, layer: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def reset(*args: Any, **kwargs: Any) -> Any:
            # A layer that wraps others resets them, too.
            if self._inside or not self._wrappers.on:
                return original(*args, **kwargs)
            guard = self.run.guard
            assert guard is not None
            before = guard(self.name, self._distance, layer)
            self._inside = True
            try:
                return original(*args, **kwargs)
            finally:
                self._inside = False
                guard(self.name, self._note, layer, name, before)

        return reset

    def _note(self, layer: Any, name: str, before: float | None) -> None:
        looks = self._looks[id(layer)] = self._looks.get(id(layer), 0) + 1
        if before is None or looks > MOST_RESETS:
            return
        after = self._distance(layer)
        if after is not None:
            self.run.audit(self.name, {"layers": [self._row(layer, name, before, after)]})

    def _row(self, layer: Any, name: str, before: float, after: float) -> dict[str, Any]:
        states = [state for part in _stateful(layer) for state in recurrent_states(part)]
        return {
            "name": layer.name,
            "class": type(layer).__name__,
            "by": name,
            "before": before,
            "after": after,
            "scale": max(before, after),
            "elements": int(sum(np.prod(state.shape) for state in states)),
            "dtype": str(states[0].dtype),
            "outputs": None,
        }

    def _distance(self, layer: Any) -> float | None:
        """How far the states are from their initial values; None where they cannot be read now."""
        try:
            far = [_from_initial(part, self.run.backend.read) for part in _stateful(layer)]
        except RuntimeError:  # on JAX, variables are empty while an epoch runs
            return None
        return max(far, default=None)

    def on_released(self) -> None:
        self.on_closed()
        if self.run.kind == "fit":
            model = self.run.model
            with untouched(model):
                rows = list(self._tried(model))
            if rows:
                self.run.audit(self.name, {"layers": rows})

    def _tried(self, model: Any) -> Iterator[dict[str, Any]]:
        """Every outermost layer that can be reset and was not, reset by us."""
        inner: set[int] = set()
        for layer in model._flatten_layers(include_self=False):
            name = next((n for n in NAMES if callable(getattr(layer, n, None))), None)
            if name is None or not _stateful(layer) or id(layer) in inner:
                continue
            inner |= {id(part) for part in layer._flatten_layers()}
            before = self._distance(layer)
            if not before or id(layer) in self._looks:
                continue
            getattr(layer, name)()
            after = self._distance(layer)
            if after is not None:
                yield self._row(layer, name, before, after)

    def on_closed(self) -> None:
        self._wrappers.take_off()


def _stateful(layer: Any) -> list[Any]:
    """The layer itself and those in it that keep a state from batch to batch; wrappers that only
    pass on the states of others left out.
    """
    holders = [part for part in layer._flatten_layers() if recurrent_states(part)]
    return [part for part in holders if hasattr(part, "get_initial_state")] or holders


def _from_initial(layer: Any, read: Callable[[Any], Any]) -> float:
    """The largest distance of a state from zero, to which Keras resets, or from what the cell
    itself calls its initial state, whichever is nearer.
    """
    states = [np.asarray(read(v), np.float64) for v in recurrent_states(layer)]
    far = max(float(np.abs(state).max(initial=0.0)) for state in states)
    if far == 0.0 or not hasattr(layer, "get_initial_state"):
        return far
    own = keras.tree.flatten(layer.get_initial_state(states[0].shape[0]))
    pairs = zip(states, map(numpy_of, own), strict=True)
    return min(far, max(float(np.abs(a - b).max(initial=0.0)) for a, b in pairs))
