"""The mask that Keras carries on a tensor."""

from __future__ import annotations

from typing import Any

try:
    from keras.src.backend import get_keras_mask
except ImportError:  # Keras before 3.6 keeps it as an attribute on all backends

    def get_keras_mask(x: Any) -> Any:
        return getattr(x, "_keras_mask", None)


def mask_of(tensor: Any) -> Any | None:
    """The mask on a tensor, or None. On JAX it lies beside the tensor, not on it."""
    return get_keras_mask(tensor)
