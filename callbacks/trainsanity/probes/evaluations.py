"""Calls of `evaluate` that callbacks make: whether they evaluated the data they were given."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from trainsanity import call_sites
from trainsanity.difference import numpy_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import call_model, refused, untouched, values_as_now
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import rows_of
from trainsanity.wrappers import Wrappers

MOST_ROWS = 4096  # that are predicted once more
MOST_CALLS = 3  # on different data
METHODS = ("compute_loss", "test_step", "evaluate")
FIRST_SECONDS = 0.5  # that looking may take at least


class Evaluations(Probe):
    """Adds comparisons of the kind `evaluate` to the audit `paths`: the loss that the user got from
    `evaluate` on arrays, and the loss of predictions for the same arrays.
    """

    name = "evaluations"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._wrappers = Wrappers()
        self._seen: list[Any] = []
        self._opened = time.monotonic()
        self._spent = 0.0

    def on_begin(self) -> None:
        model = self.run.model
        if self.run.is_shared:
            return
        if self.run.kind != "fit" or self.run.guard is None or "evaluate" in model.__dict__:
            return
        # What the user computes in another way need not be the loss of the predictions.
        if any(not is_of_keras(getattr(type(model), name)) for name in METHODS):
            return
        self._wrappers.put(model, "evaluate", self._around(model.evaluate))

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def passed_on(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            # Validation inside `fit` gets the list of callbacks of `fit`.
            is_inner = isinstance(kwargs.get("callbacks"), keras.callbacks.CallbackList)
            if self._wrappers.on and not is_inner:
                guard = self.run.guard
                assert guard is not None
                guard(self.name, self._look, result, args, kwargs, sys._getframe(1))
            return result

        return passed_on

    def _look(self, result: Any, args: Any, kwargs: Mapping[str, Any], frame: Any) -> None:
        names = ("x", "y", "batch_size", "verbose", "sample_weight", "steps")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        data = [given.get(name) for name in ("x", "y", "sample_weight")]
        shown = _loss_in(result)
        if shown is None or given.get("steps") is not None or not self._can_compare(data):
            return
        self._seen.append(data[0])
        started = time.monotonic()
        size = int(given.get("batch_size") or 32)
        try:
            with untouched(self.run.model), refused("predicting these rows raises"):
                true = self._loss(data, size)
                again = self._loss(data, size) if not np.isclose(true, shown, rtol=1e-5) else true
        except CannotAudit:  # data that evaluate takes, and that a plain call does not
            return
        finally:
            self._spent += time.monotonic() - started
        site = call_sites.site_of_frame(call_sites.user_frame(frame))
        self.run.audit("paths", {"comparisons": [_comparison(shown, true, again, site)]})

    def _can_compare(self, data: list[Any]) -> bool:
        leaves = [leaf for part in data if part is not None for leaf in keras.tree.flatten(part)]
        arrays = data[1] is not None and all(hasattr(leaf, "shape") for leaf in leaves)
        if not arrays or rows_of(data[0]) > MOST_ROWS or len(self._seen) >= MOST_CALLS:
            return False
        share = self.run.settings.audit_budget * (time.monotonic() - self._opened)
        is_new = not any(data[0] is known for known in self._seen)
        return is_new and self._spent < max(FIRST_SECONDS, share)

    def _loss(self, data: list[Any], size: int) -> float:
        """The compiled loss of predictions, with what layers add, as a mean over rows."""
        total, rows = 0.0, rows_of(data[0])
        compiled = self.run.model._compile_loss
        with values_as_now(v for metric in compiled.metrics for v in metric.variables):
            for first in range(0, rows, size):
                x, y, weight = (_part(part, slice(first, first + size)) for part in data)
                outputs = call_model(self.run.model, x, training=False)
                value = keras.ops.sum(compiled(y, outputs, weight)) + sum(self.run.model.losses)
                total += float(numpy_of(value)) * rows_of(x)
        return total / rows

    def on_closed(self) -> None:
        self._wrappers.take_off()
        self._seen.clear()


def _part(part: Any, rows: slice) -> Any:
    return None if part is None else keras.tree.map_structure(lambda leaf: leaf[rows], part)


def _loss_in(result: Any) -> float | None:
    """The loss in what `evaluate` returns: a number, a list that begins with it, or logs."""
    if isinstance(result, Mapping):
        result = result.get("loss")
    elif isinstance(result, (list, tuple)):
        result = result[0] if result else None
    return None if result is None or np.ndim(result) else float(result)


def _comparison(shown: float, true: float, again: float, site: str | None) -> dict[str, Any]:
    return {
        "subject": "loss",
        "kind": "evaluate",
        "ways": ["evaluate", "predictions for the same rows"],
        "values": [shown, true],
        "difference": {
            "largest": abs(shown - true),
            "scale": max(abs(shown), abs(true)),
            "elements": 1,
            "dtype": "float32",
            "noise": abs(again - true),
            "sensitivity": None,
            "nonfinite": [int(not np.isfinite(shown)), int(not np.isfinite(true))],
        },
        "declared_follows_batch": False,
        "site": site,
    }
