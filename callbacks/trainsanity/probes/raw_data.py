"""The inputs as they were given, before any layer normalizes them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainsanity.probes.probe import Probe

ROWS = 256  # looked at, evenly spread


class RawData(Probe):
    """Makes the audit `raw_data` of floating-point arrays given to `fit`, and those to validate."""

    name = "raw_data"

    def on_begin(self) -> None:
        fit = self.run.fit
        if fit is None or fit.data_kind != "arrays":
            reason = "the data was not given as arrays"
            self.run.audit(self.name, {"not_testable": reason}, 0)
            return
        leaves = [x for x in keras.tree.flatten(fit.get("x")) if isinstance(x, np.ndarray)]
        others = _validation_inputs(fit.get("validation_data"), like=leaves)
        names = getattr(self.run.model, "input_names", None) or []
        rows = [
            _row(names[i] if i < len(names) else f"input_{i}", leaf)
            | {"validation": _beside(others[i], leaf) if others else None}
            for i, leaf in enumerate(leaves)
            if _is_measured(leaf)
        ]
        self.run.audit(self.name, {"inputs": rows}, 0)


def _validation_inputs(
    given: Any, *, like: list[np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]] | None:
    """Those of `validation_data`, where they are arrays of the same kinds."""
    if not isinstance(given, (tuple, list)) or not given:
        return None
    leaves = keras.tree.flatten(given[0])
    same = len(leaves) == len(like) and all(
        isinstance(leaf, np.ndarray) and _is_measured(leaf) == _is_measured(other)
        for leaf, other in zip(leaves, like, strict=True)
    )
    return leaves if same else None


def _is_measured(leaf: np.ndarray[Any, Any]) -> bool:
    return leaf.dtype.kind in "fu" and bool(leaf.size)


def _beside(validation: np.ndarray[Any, Any], train: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Medians over features (the last axis), of those that vary in both: a few may be odd."""
    pair = _chosen(validation), _chosen(train)
    features = [rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1) for rows in pair]
    facts: dict[str, Any] = {"rows": len(pair[0]), "shift": None, "spread": None}
    if features[0].shape[1] == features[1].shape[1]:
        spread, usual = (rows.std(axis=0) for rows in features)
        both = (spread > 0) & (usual > 0)
        if both.any():
            shift = features[0].mean(axis=0) - features[1].mean(axis=0)
            facts["shift"] = float(np.median((np.abs(shift) / np.where(both, usual, 1))[both]))
            facts["spread"] = float(np.median(spread[both] / usual[both]))
    return facts


def _chosen(leaf: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    chosen = np.unique(np.linspace(0, len(leaf) - 1, min(ROWS, len(leaf))).astype(int))
    return np.asarray(leaf[chosen], np.float64)


def _row(name: str, leaf: np.ndarray[Any, Any]) -> dict[str, Any]:
    rows = _chosen(leaf)
    return {
        "name": name,
        "rows": len(rows),
        "mean": float(rows.mean()),
        "std": float(rows.std()),
        "border_zero": _border_zero(rows) if rows.ndim == 4 else None,
    }


def _border_zero(rows: np.ndarray[Any, Any]) -> float:
    edges = (rows[:, 0], rows[:, -1], rows[:, :, 0], rows[:, :, -1])
    return float(np.mean(np.concatenate([edge.reshape(-1) for edge in edges]) == 0))
