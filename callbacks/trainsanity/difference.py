"""Comparing two tensors that should be equal; the `difference` of docs/evidence.md."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]


def array_of(tensor: Any) -> Array:
    """A tensor on the host; float64, so that half precision can be compared."""
    value = np.asarray(keras.ops.convert_to_numpy(tensor))
    return value.astype(np.float64) if value.dtype.kind not in "iub" else value


def difference(
    a: Any, b: Any, *, noise: float | None = None, sensitivity: float | None = None
) -> dict[str, Any]:
    """Largest absolute difference of two tensors of one shape, with what its judgement needs.

    Raises:
        ValueError: the shapes differ.
    """
    first, second = array_of(a), array_of(b)
    if first.shape != second.shape:
        raise ValueError(f"shapes must agree. Received: {first.shape} and {second.shape}")
    first, second = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    apart = np.abs(first - second, where=finite, out=np.zeros(first.shape))
    scale = max(float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in (first, second))
    return {
        "largest": float(apart.max(initial=0.0)),
        "scale": scale,
        "elements": int(first.size),
        "dtype": keras.backend.standardize_dtype(a.dtype) if hasattr(a, "dtype") else "float32",
        "noise": noise,
        "sensitivity": sensitivity,
        "nonfinite": [int((~np.isfinite(v)).sum()) for v in (first, second)],
    }
