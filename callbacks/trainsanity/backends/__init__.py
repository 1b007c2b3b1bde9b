"""The few operations that Keras does not offer in one form for all backends.

Each module offers the same functions; the one of the active backend is chosen when a run begins,
so nothing here imports TensorFlow, JAX or torch before Keras has done so itself.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def active() -> ModuleType:
    """The module for the backend that Keras runs on.

    Raises:
        NotImplementedError: Keras runs on a backend that is not supported.
    """
    import keras

    name = keras.backend.backend()
    if name not in ("tensorflow", "jax", "torch"):
        raise NotImplementedError(
            "trainsanity watches training on the backends tensorflow, jax and torch. "
            f"Received: keras.backend.backend()={name!r}"
        )
    return importlib.import_module(f"{__name__}.{name}")
