"""All workflows, and those that are also trained on JAX and torch."""

from __future__ import annotations

from collections.abc import Callable

from tests.healthy import precision, vision

from trainsanity.spooled import SpooledRun

# One run, or several where training has phases.
Workflow = Callable[[], SpooledRun | list[SpooledRun]]

FIELDS = (vision, precision)


def all_workflows() -> list[Workflow]:
    return [train for field in FIELDS for train in field.WORKFLOWS]


# Cheap, of different kinds, and without tf.data or TensorFlow's functions. No masks: on JAX Keras
# 3.15.1 counts padding in training metrics, so such a run is no healthy control there.
EVERYWHERE = {"mnist_like_convnet", "transfer_learning", "two_heads_of_one_picture"}


def workflows_of(backend: str) -> list[Workflow]:
    everything = all_workflows()
    if backend == "tensorflow":
        return everything
    return [train for train in everything if train.__name__ in EVERYWHERE]
