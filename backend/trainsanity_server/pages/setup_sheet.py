"""How a run was set up: compile and fit arguments, environment, layers, and probes that failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity_server.pages.formats import figure
from trainsanity_server.pages.layer_facts import layers_of, shape_text
from trainsanity_server.services.runs import AuditFact, Run

# What the sheet is made of; the facts of the environment are the run's by then.
SHOWN_AUDITS = ("environment", "model", "compile", "fit", "probe_failed")


@dataclass(frozen=True)
class LayerLine:
    path: str
    kind: str
    shape: str
    parameters: int | None
    trainable: str
    dtype: str


@dataclass(frozen=True)
class Failure:
    """A probe that was switched off."""

    probe: str
    error: str
    traceback: str


@dataclass(frozen=True)
class SetupSheet:
    """Attributes:
    listings: title and facts, nested names joined with dots.
    """

    listings: Sequence[tuple[str, Mapping[str, str]]]
    layers: Sequence[LayerLine]
    parameters: int | None
    failures: Sequence[Failure]


def setup_sheet(run: Run, audits: Sequence[AuditFact]) -> SetupSheet:
    newest = {audit.name: audit.facts for audit in audits}
    model = newest.get("model", {})
    return SetupSheet(
        listings=[
            ("Compile arguments", _short_names(flat(newest.get("compile", {})))),
            ("Fit arguments", flat(newest.get("fit", {}))),
            ("Declared intent", flat(run.expect)),
            ("Your configuration", flat(run.config)),
            ("Environment", flat(run.environment)),
        ],
        layers=[_layer(layer) for layer in layers_of(model)],
        parameters=_whole(model.get("parameters")),
        failures=[_failure(a.facts) for a in audits if a.name == "probe_failed"],
    )


def flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as lines; what is null was not given and is left out."""
    return {key: _text(value) for key, value in _leaves(facts, "") if value is not None}


def _short_names(facts: Mapping[str, str]) -> dict[str, str]:
    return {key.replace("optimizer.config.", "optimizer."): value for key, value in facts.items()}


def _leaves(facts: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _digits(value)
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) if _is_flat(value) else json.dumps(value)
    return str(value)


def _digits(value: float) -> str:
    """A float32 in the digits it has: 0.001, not 0.0010000000474974513."""
    with np.errstate(over="ignore"):
        short = np.float32(value)
    return str(short) if float(short) == value else str(value)


def _is_flat(items: Sequence[Any]) -> bool:
    return not any(isinstance(item, (list, Mapping)) for item in items)


def _layer(layer: Mapping[str, Any]) -> LayerLine:
    trainable = layer.get("trainable")
    return LayerLine(
        path=str(layer.get("path") or layer.get("name") or ""),
        kind=str(layer.get("class") or ""),
        shape=shape_text(layer.get("output_shape")),
        parameters=_whole(layer.get("parameters")),
        trainable={True: "yes", False: "no"}.get(trainable, "–")
        if isinstance(trainable, bool)
        else "–",
        dtype=figure(layer.get("dtype")),
    )


def _failure(facts: Mapping[str, Any]) -> Failure:
    return Failure(*(str(facts.get(key) or "unknown") for key in ("probe", "error", "traceback")))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
