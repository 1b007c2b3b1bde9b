"""All workflows, and those that are also trained on JAX and torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from trainsanity.spooled import SpooledRun

# One run, or several where training has phases.
Workflow = Callable[[], SpooledRun | list[SpooledRun]]

FIELDS = ["vision", "text", "tables", "series", "graphs", "own_steps", "precision", "traps"]


def all_workflows() -> list[Workflow]:
    modules = [importlib.import_module(f"tests.healthy.{field}") for field in FIELDS]
    return [train for module in modules for train in module.WORKFLOWS]


# Cheap, of different kinds, and without tf.data or TensorFlow's functions. No masks: on JAX Keras
# 3.15.1 counts padding in training metrics, so such a run is no healthy control there.
EVERYWHERE = (
    ("vision", "mnist_like_convnet"),
    ("vision", "two_heads_of_one_picture"),
    ("text", "convolutions_over_words"),
    ("tables", "wide_and_deep"),
    ("tables", "several_labels"),
    ("tables", "weights_for_loss_and_metrics"),
    ("series", "lstm_forecast"),
    ("graphs", "point_net"),
    ("traps", "momentum_after_the_rate_is_zero"),
    ("traps", "accumulated_gradients"),
)


def workflows_of(backend: str) -> list[Workflow]:
    if backend == "tensorflow":
        return all_workflows()
    return [_workflow(field, name) for field, name in EVERYWHERE]


def _workflow(field: str, name: str) -> Workflow:
    train: Workflow = getattr(importlib.import_module(f"tests.healthy.{field}"), name)
    return train
