"""Norms of NumPy arrays, without BLAS.

Its threads wait for more in a busy loop: OpenBLAS after a product of long vectors for a tenth of a
second, on a processor that the training needs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def square_sum(values: np.ndarray[Any, Any]) -> float:
    """Sum of the squares of all elements, in float64 as NumPy adds up: in pairs."""
    with np.errstate(over="ignore"):
        return float(np.square(values, dtype=np.float64).sum())


def l2_norm(values: np.ndarray[Any, Any]) -> float:
    """Square root of the sum of the squares of all elements."""
    return math.sqrt(square_sum(values))
