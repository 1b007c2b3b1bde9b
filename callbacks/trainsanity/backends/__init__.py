"""The few operations that Keras does not offer in one form for all backends.

The one of the active backend is chosen when a run begins, so nothing here imports TensorFlow, JAX
or torch before Keras has done so itself.
"""

from __future__ import annotations

import functools

from trainsanity.backends.backend import Backend


@functools.cache
def active() -> Backend:
    """What the backend that Keras runs on offers.

    Raises:
        NotImplementedError: Keras runs on a backend that is not supported.
    """
    import keras

    name = keras.backend.backend()
    if name == "tensorflow":
        from trainsanity.backends.tensorflow import TensorFlow

        return TensorFlow()
    if name == "jax":
        from trainsanity.backends.jax import Jax

        return Jax()
    if name == "torch":
        from trainsanity.backends.torch import Torch

        return Torch()
    raise NotImplementedError(
        "trainsanity watches training on the backends tensorflow, jax and torch. "
        f"Received: keras.backend.backend()={name!r}"
    )
