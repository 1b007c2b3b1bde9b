"""Metric objects: what they say themselves, and whether a reset resets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainsanity.difference import numpy_of
from trainsanity.origin import is_of_keras
from trainsanity.probes.metrics import compiled_metrics
from trainsanity.probes.probe import Probe
from trainsanity.tape import variables_of


class MetricObjects(Probe):
    """Makes the audits `log_keys` at epoch ends and `metric_state` at epoch begins."""

    name = "metric_objects"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._asked: dict[str, float] | None = None
        self._before: dict[int, float] = {}
        self._first: dict[int, float] = {}  # right after the first reset of this run

    # log_keys

    def on_test_begin(self) -> None:
        # Validation resets the metrics: afterwards they no longer know the epoch.
        if self.run.kind == "fit" and self._asked is None:
            self._asked = self._ask()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if self._asked is None and self.run.shared.get("foreign_at") == self.run.step:
            # A callback before ours has evaluated: the metrics are those of its data now.
            self._before = {}
            return
        asked = self._ask() if self._asked is None else self._asked
        self._asked = None
        objects = _by_key(self.run.model)
        keys = [
            {
                "key": key,
                "shown": float(logs[key]),
                "result": result,
                "object": f"{type(objects[key]).__name__} {objects[key].name}",
                "owners": _owners(self.run.model, objects[key].name),
            }
            for key, result in asked.items()
            if key in logs
        ]
        self.run.audit("log_keys", {"epoch": epoch, "keys": keys})
        self._before = {id(v): self._sum(v) for m in objects.values() for v in variables_of(m)}

    def _ask(self) -> dict[str, float]:
        results = {}
        for key, metric in _by_key(self.run.model).items():
            value = metric.result()
            if not isinstance(value, dict) and len(np.shape(value)) == 0:
                results[key] = float(numpy_of(value))
        return results

    # metric_state

    def on_epoch_begin(self, epoch: int) -> None:
        self._asked = None
        if not self._first:
            objects = _by_key(self.run.model)
            metrics = objects.values()
            self._first = {id(v): self._sum(v) for m in metrics for v in variables_of(m)}
        rows = [
            {
                "key": key,
                "class": type(metric).__name__,
                "own_reset": not is_of_keras(type(metric).reset_state),
                "variables": [self._variable(v) for v in variables_of(metric)],
            }
            for key, metric in _by_key(self.run.model).items()
        ]
        if rows and self._before:
            self.run.audit("metric_state", {"epoch": epoch, "metrics": rows})

    def _variable(self, variable: Any) -> dict[str, Any]:
        initial = _initial(variable)
        return {
            "name": variable.name,
            "initial": self._first.get(id(variable)) if initial is None else initial,
            "before_reset": self._before.get(id(variable)),
            "after_reset": self._sum(variable),
        }

    def _sum(self, variable: Any) -> float:
        return _absolute_sum(self.run.backend.read(variable))


def _absolute_sum(value: Any) -> float:
    return float(np.abs(np.asarray(value, np.float64)).sum())


def _initial(variable: Any) -> float | None:
    """What the variable held when it was new; None where its initializer is random or gone."""
    initializer = variable._initializer
    if initializer is None or hasattr(initializer, "seed"):
        return None
    value = initializer(variable.shape, dtype=variable.dtype)
    return _absolute_sum(numpy_of(value))


def _by_key(model: Any) -> dict[str, Any]:
    """The metric object that each log key shows: of several the last, as in Keras' dictionary."""
    return {key: metrics[-1] for key, metrics in _claimants(model).items()}


def _claimants(model: Any) -> dict[str, list[Any]]:
    """The metric objects that want each log key, in Keras' order
    (keras/src/trainers/trainer.py, `get_metrics_result`).
    """
    found: dict[str, list[Any]] = {}
    for metric in model.metrics:
        if metric is getattr(model, "_compile_metrics", None):
            for entry in compiled_metrics(model):
                found.setdefault(entry.key, []).append(entry.metric)
        else:
            found.setdefault(metric.name, []).append(metric)
    return found


def _owners(model: Any, name: str) -> int:
    """Metric objects that want the one place in the logs: those of the model, and those of nested
    layers that no key shows.

    Metrics of one name that Keras shows under keys of their own (`mae`, `weighted_mae`) do not
    count, nor do losses of outputs: Keras gives them their names.
    """
    claimants = _claimants(model)
    known = {id(m) for metrics in claimants.values() for m in metrics}
    losses = getattr(getattr(model, "_compile_loss", None), "metrics", [])
    named = [m for m in claimants.get(name, []) if not any(m is loss for loss in losses)]
    hidden = {
        id(m)
        for layer in model._flatten_layers(include_self=False)
        for m in getattr(layer, "_metrics", [])
        if m.name == name and id(m) not in known
    }
    return max(len(named), 1) + len(hidden)
