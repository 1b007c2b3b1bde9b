"""Forward passes for audits that leave the model exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Puts back, at the end, every variable that a forward pass may change: statistics, seeds, recurrent states."""
    trained = {id(v) for layer in model._flatten_layers() for v in layer._trainable_variables}
    volatile = [v for v in _all_variables(model) if id(v) not in trained]
    before = [keras.ops.convert_to_numpy(v).copy() for v in volatile]
    try:
        yield
    finally:
        for variable, value in zip(volatile, before, strict=True):
            variable.assign(value)


def _all_variables(model: Any) -> list[Any]:
    """Weights and seed generators' states."""
    return list({id(v): v for v in model.variables}.values())


def quiet_forward(model: Any, x: Any, *, training: bool = False) -> Any:
    """The model's output on a sample, called eagerly, with nothing changed."""
    with untouched(model):
        if model._call_has_training_arg:
            return model(x, training=training)
        return model(x)
