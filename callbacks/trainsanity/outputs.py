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
    losses = _losses(model, names)
    found = []
    rows = zip(names, predictions, labels, weights, given, strict=True)
    for name, prediction, label, weight, came in rows:
        if label is None or not hasattr(prediction, "shape"):
            continue
        loss, loss_weight = losses.get(name, (None, None))
        mask = mask_of(prediction)
        found.append(OutputEvidence(name, label, prediction, weight, mask, loss, loss_weight, came))
    return found


def _named(model: Any, y_pred: Any) -> tuple[list[str], list[Any]]:
    if isinstance(y_pred, dict) and not any(map(keras.tree.is_nested, y_pred.values())):
        own = getattr(model, "output_names", None)
        keys = list(own) if own and set(own) == set(y_pred) else sorted(y_pred)
        return keys, [y_pred[key] for key in keys]
    leaves = keras.tree.flatten(y_pred)
    if len(leaves) == 1:
        return [""], leaves
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


def _losses(model: Any, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    found: dict[str, tuple[Any, Any]] = {}
    for path, loss, weight, _ in flat:
        if not path:
            name = names[0] if len(names) == 1 else None
        elif isinstance(path[-1], int):
            name = names[path[-1]] if path[-1] < len(names) else None
        else:
            name = path[-1] if len(names) > 1 else names[0]
        if name is not None and name not in found:
            found[name] = (loss, weight)
    return found
