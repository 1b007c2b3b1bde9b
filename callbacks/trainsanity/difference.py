"""Tensors as they are compared; the `difference` of docs/evidence.md."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]


def numpy_of(tensor: Any) -> Array:
    """A tensor or variable on the host; its memory may be the tensor's own.

    Keras' own conversion fails at a number of bfloat16 on TensorFlow, which becomes float32 here.
    """
    if getattr(tensor, "shape", None) == () and dtype_of(tensor) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def array_of(tensor: Any) -> Array:
    """A tensor on the host; float64, so that half precision can be compared."""
    value = numpy_of(tensor)
    return value.astype(np.float64) if value.dtype.kind not in "iub" else value


def hash_of(*arrays: Any) -> str:
    """Of what the arrays hold, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def dtype_of(tensor: Any) -> str:
    """By the name that Keras gives it on every backend; a plain number is float32."""
    found = getattr(tensor, "dtype", None)
    return "float32" if found is None else str(keras.backend.standardize_dtype(found))


def elements_of(tensors: Iterable[Any]) -> int:
    """How many numbers they hold together; those of unknown shape left out."""
    return sum(math.prod(tensor.shape) for tensor in tensors if None not in tensor.shape)


def is_float(tensor: Any) -> bool:
    """Whether this is a tensor, array or variable of floating-point numbers."""
    return hasattr(tensor, "dtype") and bool(keras.backend.is_float_dtype(dtype_of(tensor)))


# Largest rounding first.
FLOATS = ("bfloat16", "float16", "float32", "float64")


def coarsest_dtype(model: Any) -> str:
    """The dtype of the largest rounding in which any layer of the model computes."""
    used = {layer.compute_dtype for layer in model._flatten_layers()}
    return next((dtype for dtype in FLOATS if dtype in used), "float32")


def _coarser(dtype: str, other: str | None) -> str:
    """Of two floating-point dtypes the one with the larger rounding; other dtypes stay."""
    known = dtype in FLOATS and other in FLOATS
    return min(dtype, other, key=FLOATS.index) if known and other else dtype


@functools.cache
def products_of_float64() -> str:
    """The dtype of the product of two float64 matrices: on torch Keras 3.15 makes it in float32."""
    matrix = keras.ops.convert_to_tensor(np.eye(2), "float64")
    return dtype_of(keras.ops.matmul(matrix, matrix))


def difference(
    a: Any,
    b: Any,
    *,
    noise: float | None = None,
    sensitivity: float | None = None,
    computed_in: str | None = None,
) -> dict[str, Any]:
    """Largest absolute difference of two tensors of one shape, with what its judgement needs.

    Args:
        computed_in: coarsest dtype on the way to the tensors. A float32 head under mixed precision
            passes on the roundings of the layers before it.

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
    dtype = dtype_of(a)
    if dtype == "float64":
        computed_in = _coarser(products_of_float64(), computed_in)
    return {
        "largest": float(apart.max(initial=0.0)),
        "scale": scale,
        "elements": int(first.size),
        "dtype": _coarser(dtype, computed_in),
        "noise": noise,
        "sensitivity": sensitivity,
        "nonfinite": [int((~np.isfinite(v)).sum()) for v in (first, second)],
    }
