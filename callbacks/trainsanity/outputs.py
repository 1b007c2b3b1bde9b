"""Which label, weight and loss belong to which output of a model, as Keras pairs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from trainsanity.masking import mask_of
from trainsanity.probes.probe import OutputEvidence


def outputs_of(
    model: Any, y: Any, y_pred: Any, sample_weight: Any, given_weight: Any = None
) -> list[OutputEvidence]:
    """One entry per output that has a label; outputs nested deeper than one level are numbered."""
    names, predictions = _named(model, y_pred)
    labels = _matched(names, y, shared=False)
    weights = _matched(names, sample_weight, shared=True)
    given = _matched(names, given_weight, shared=True)
    losses = _losses(model, names, predictions, y_pred)
    found = []
    rows = zip(names, predictions, labels, weights, given, strict=True)
    for place, (name, prediction, label, weight, came) in enumerate(rows):
        if label is None or not hasattr(prediction, "shape"):
            continue
        output = OutputEvidence(name, label, prediction, weight, mask_of(prediction), place, came)
        output.losses = losses.get(name, [])
        found.append(output)
    return found


def _named(model: Any, y_pred: Any) -> tuple[list[str], list[Any]]:
    leaves = keras.tree.flatten(y_pred)
    if len(leaves) == 1:
        return [""], leaves
    if isinstance(y_pred, dict) and not any(map(keras.tree.is_nested, y_pred.values())):
        own = getattr(model, "output_names", None)
        keys = list(own) if own and set(own) == set(y_pred) else sorted(y_pred)
        return keys, [y_pred[key] for key in keys]
    own = getattr(model, "output_names", None)
    if own and len(own) == len(leaves):
        return list(own), leaves
    return [f"output_{i}" for i in range(len(leaves))], leaves


def _matched(names: Sequence[str], part: Any, *, shared: bool) -> list[Any]:
    """The leaves of labels or weights by output; one leaf serves all outputs where `shared`."""
    if part is None:
        return [None] * len(names)
    if isinstance(part, dict) and set(part) & set(names):
        return [part.get(name) for name in names]
    leaves: list[Any] = keras.tree.flatten(part)
    if len(leaves) == len(names):
        return leaves
    if len(leaves) == 1 and shared:
        return leaves * len(names)
    return [None] * len(names)


def _losses(
    model: Any, names: Sequence[str], predictions: Sequence[Any], y_pred: Any
) -> dict[str, list[tuple[Any, Any, int]]]:
    """Output -> its losses, each with its weight and its place among all."""
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    found: dict[str, list[tuple[Any, Any, int]]] = {}
    for place, (path, loss, weight, _) in enumerate(flat):
        name = _output_of(path, names, predictions, y_pred)
        if name is not None:
            found.setdefault(name, []).append((loss, weight, place))
    return found


def _output_of(
    path: Sequence[Any], names: Sequence[str], predictions: Sequence[Any], y_pred: Any
) -> str | None:
    """The output that a compiled loss reads: keys and places down the structure of outputs."""
    if len(names) == 1:
        return names[0]
    if len(path) == 1 and path[0] in names:
        return str(path[0])
    part = y_pred
    for step in path:
        try:
            part = part[step]
        except (TypeError, KeyError, IndexError):
            return None
    return next((n for n, p in zip(names, predictions, strict=True) if p is part), None)
