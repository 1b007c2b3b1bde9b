"""The mask that Keras carries on a tensor."""

from __future__ import annotations

from typing import Any

try:
    from keras.src.backend import get_keras_mask, set_keras_mask
except ImportError:  # Keras before 3.6 keeps it as an attribute on all backends

    def get_keras_mask(x: Any) -> Any:
        return getattr(x, "_keras_mask", None)

    def set_keras_mask(x: Any, mask: Any) -> None:
        x._keras_mask = mask


def mask_of(tensor: Any) -> Any | None:
    """The mask on a tensor, or None. On JAX it lies beside the tensor, not on it."""
    return get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Puts a mask on a tensor, as Keras does."""
    set_keras_mask(tensor, mask)


def put_mask(tensor: Any, mask: Any | None) -> None:
    """Gives a tensor the mask of another."""
    if mask is not None:
        set_keras_mask(tensor, mask)
