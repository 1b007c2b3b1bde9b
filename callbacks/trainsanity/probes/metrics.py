"""Compiled metrics: as Keras shows them, recomputed, and over other choices of what counts."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from trainsanity.epoch_mean import VARIANTS, EpochMean, EpochMeans
from trainsanity.masking import mask_of
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Columns, OutputEvidence, Step
from trainsanity.probes.weighting import (
    mean_parts,
    product,
    real_positions,
    spread_if_any,
    spread_positions,
)
from trainsanity.tape import TapeRows


@dataclass(frozen=True)
class CompiledMetric:
    """A metric of `compile`: the key in Keras' logs, the output it reads, whether weights apply."""

    key: str
    metric: Any
    output: int  # its place among the outputs
    weighted: bool


class Metrics(EpochMeans):
    """Per batch and metric: numerator and denominator of Keras' mean under each choice of what
    counts.
    """

    name = "metrics"
    in_all_processes = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._compiled: Any = None
        self._compiled_entries: list[CompiledMetric] = []
        # key -> facts for the audit `columns`
        self.found: dict[str, dict[str, Any]] = run.shared.setdefault("metric_facts", {})

    def trace_logs(self, step: Step) -> Columns:
        # A metric may give one number for each class; such rows are not on the tape.
        return {f"{k}/reported": value for k, value in step.results.items() if _is_number(value)}

    see_step = trace_logs

    def trace_metrics(self, step: Step) -> Columns:
        columns: dict[str, Any] = {}
        outputs = {output.place: output for output in step.outputs}
        for entry in self._entries():
            if entry.output in outputs:
                columns.update(self._parts(step, outputs[entry.output], entry))
        return columns

    def _entries(self) -> list[CompiledMetric]:
        """Found once, as Keras computes all results to name them."""
        compiled = getattr(self.run.model, "_compile_metrics", None)
        if compiled is not self._compiled or not self._compiled_entries:
            self._compiled, self._compiled_entries = compiled, compiled_metrics(self.run.model)
        return self._compiled_entries

    def _parts(self, step: Step, output: OutputEvidence, entry: CompiledMetric) -> Columns:
        values = self._values(step, output, entry)
        if values is None:
            return {}
        weight = spread_if_any(output.sample_weight, values)
        mask = spread_if_any(output.mask, values)
        real = real_positions(step, output, self.run)
        real = None if real is None else spread_positions(real, values)
        own = spread_if_any(mask_of(values), values)  # of classes that the function ignores
        recomputed = product(weight if entry.weighted else None, mask)
        # Keras looks at it only where there are weights (keras/src/metrics/reduction_metrics.py).
        variants = {"recomputed": None if recomputed is None else product(recomputed, own)}
        if real is not None or mask is not None or weight is not None:
            variants["all"] = None
        if real is not None:
            variants["unmasked"] = product(real, own)
        if weight is not None:
            variants["weighted"] = product(weight, real if real is not None else mask, own)
        columns = {}
        for variant, counted in variants.items():
            numerator, denominator = mean_parts(self.run.backend, values, counted)
            columns[f"_{entry.key}:{variant}:n"] = numerator
            columns[f"_{entry.key}:{variant}:d"] = denominator
        return columns

    def _values(self, step: Step, output: OutputEvidence, entry: CompiledMetric) -> Any | None:
        """The metric per position, or None where it is no mean of a function over positions."""
        metric = entry.metric
        facts: dict[str, Any] = {
            "key": entry.key,
            "kind": type(metric).__name__,
            "output": output.name,
            "weighted": entry.weighted,
            "recomputed_by": None,
            "reason": None,
            "mean_of": "samples",
            "threshold": _threshold_of_probabilities(metric),
        }
        self.found[entry.key] = facts
        function = getattr(metric, "_fn", None)
        if not isinstance(metric, keras.metrics.MeanMetricWrapper) or function is None:
            facts["reason"] = f"{facts['kind']} is no mean over positions"
            return None
        is_keras = is_of_keras(function)
        values = step.metric_values.get(id(metric))
        if values is None and is_keras:
            values = function(output.y_true, output.y_pred, **metric._fn_kwargs)
        if values is None:
            facts["reason"] = "the metric's own update_state does not call its function"
            return None
        if len(getattr(values, "shape", ())) == 0:  # also a number of Python's
            facts["reason"] = "the function reduces its values itself"
            return None
        own_update = type(metric).update_state is not keras.metrics.MeanMetricWrapper.update_state
        whose = "reference" if is_keras else "own function"
        facts["recomputed_by"] = "overridden update_state" if own_update else whose
        return ops.cast(values, "float32")

    def columns(self, rows: TapeRows, means: EpochMean) -> Columns:
        columns: dict[str, Any] = {}
        for key in self.found:
            for variant in VARIANTS:
                n = rows.columns.get(f"_{key}:{variant}:n")
                d = rows.columns.get(f"_{key}:{variant}:d")
                if n is None or d is None:
                    continue
                columns[f"{key}/{variant}"] = means.extend(f"{key}:{variant}", n, d)
                if variant == "recomputed":
                    columns[f"{key}/batch"] = EpochMean.of_each(n, d)
        return columns


def _threshold_of_probabilities(metric: Any) -> float | None:
    """The first threshold between 0 and 1 with which a metric of Keras compares outputs; None
    where it compares with none, or was told that they are logits.
    """
    if not is_of_keras(type(metric).update_state) or getattr(metric, "_from_logits", False):
        return None
    given = getattr(metric, "thresholds", None) or [getattr(metric, "threshold", None)]
    inside = [float(t) for t in given if isinstance(t, (int, float)) and 0 < t < 1]
    return inside[0] if inside else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "shape", None) == ()


def compiled_metrics(model: Any) -> list[CompiledMetric]:
    """The metrics of `compile` in the order in which Keras names them."""
    compiled = getattr(model, "_compile_metrics", None)
    if compiled is None or not compiled.built:
        return []
    entries: list[tuple[Any, int, bool]] = []
    for weighted, lists in (
        (False, compiled._flat_metrics),
        (True, compiled._flat_weighted_metrics),
    ):
        for output, metric_list in enumerate(lists):
            if metric_list:
                entries.extend((metric, output, weighted) for metric in metric_list.metrics)
    keys = _keys(compiled)
    if len(keys) != len(entries):
        # Two metrics under one key: Keras shows the last one only, and which is which cannot be
        # told.
        return []
    return [CompiledMetric(key, *entry) for key, entry in zip(keys, entries, strict=True)]


def _keys(compiled: Any) -> list[str]:
    """The keys of Keras' own `result`, asked of what has no values: they would be computed for
    nothing, by functions that may be the user's.
    """

    def unmeasured(metric_list: Any) -> Any:
        names = [metric.name for metric in metric_list.metrics]
        metrics = [SimpleNamespace(name=name, result=float) for name in names]
        return SimpleNamespace(metrics=metrics, output_name=metric_list.output_name)

    lists = {
        name: [unmeasured(found) if found else None for found in getattr(compiled, name)]
        for name in ("_flat_metrics", "_flat_weighted_metrics")
    }
    return list(type(compiled).result(SimpleNamespace(built=True, **lists)))
