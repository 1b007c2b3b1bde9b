"""State that Keras does not know: generators, counters and arrays that layers, losses and metrics
of the user's own keep as attributes, buffers of torch modules, variables of TensorFlow's own.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from trainsanity import backends
from trainsanity.origin import is_of_keras, is_ours

PutBack = Callable[[], Any]

# What Keras sets on a model while one of its calls runs (keras/src/backend/*/trainer.py).
OF_CALLS = {
    *("stop_training", "stop_evaluating", "stop_predicting", "history", "optimizer"),
    *("_jax_state", "_jax_state_synced", "_eval_epoch_iterator"),
}
SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic)
MOST_BYTES = 2**20  # of an array that is copied
MOST_ITEMS = 10_000  # of a list or dictionary that is


@contextmanager
def unknown_state_as_now(model: Any) -> Iterator[None]:
    """Puts such state back, at the end, to what it is now, as far as it can be recognized."""
    backend = backends.active()
    kept: list[PutBack] = []
    for owner in owners_of_state(model):
        kept += backend.beside_keras(owner)
        if not is_of_keras(type(owner)):
            kept += _attributes(owner)
    try:
        yield
    finally:
        for put_back in kept:
            put_back()


def owners_of_state(model: Any) -> list[Any]:
    """Layers, the model among them, metrics, losses; without our own."""
    layers = model._flatten_layers()
    metrics = [metric for layer in layers for metric in layer._metrics]
    compiled = getattr(model, "_compile_metrics", None)
    given = (
        model.__dict__.get("loss"),
        getattr(compiled, "_user_metrics", None),
        getattr(compiled, "_user_weighted_metrics", None),
    )
    functions = [each for each in keras.tree.flatten(given) if hasattr(each, "__dict__")]
    found = {id(each): each for each in (*layers, *metrics, *functions)}
    return [each for each in found.values() if not is_ours(type(each))]


def _attributes(owner: Any) -> Iterator[PutBack]:
    own = vars(owner)
    for name, value in own.items():
        if name in names_of_keras():
            continue
        inside = _inside(value)
        if inside is not None:
            yield inside
        if isinstance(value, (*SCALARS, np.ndarray, list, dict, set)) or _is_tensor(value):
            yield functools.partial(_set, own, name, value)


def _set(own: dict[str, Any], name: str, value: Any) -> None:
    if own.get(name) is not value:
        own[name] = value  # past `__setattr__`, which would track it


def _inside(value: Any) -> PutBack | None:
    """What puts back what an object holds."""
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.ndarray) and value.nbytes <= MOST_BYTES and value.flags.writeable:
        return functools.partial(np.copyto, value, value.copy())
    if isinstance(value, (list, dict, set)) and len(value) <= MOST_ITEMS:
        items = value.values() if isinstance(value, dict) else value
        if all(isinstance(item, SCALARS) for item in items):
            return functools.partial(_refill, value, value.copy())
    return None


def _refill(value: Any, before: Any) -> None:
    """Past methods of Keras' tracked containers, which refuse changes once a layer is built."""
    if value == before:
        return
    if isinstance(value, list):
        list.clear(value)
        list.extend(value, before)
    elif isinstance(value, dict):
        dict.clear(value)
        dict.update(value, before)
    else:
        set.clear(value)
        set.update(value, before)


def _is_tensor(value: Any) -> bool:
    return bool(keras.ops.is_tensor(value))


@functools.cache
def names_of_keras() -> frozenset[str]:
    """Attributes that Keras itself keeps, such as whether a layer is built."""
    # Imported here: that module puts back this one's state too.
    from trainsanity.forward import names_untouched

    with names_untouched():
        made = (
            keras.layers.Layer(name="trainsanity"),
            keras.Sequential(name="trainsanity"),
            keras.losses.Loss(name="trainsanity"),
            keras.metrics.Mean(name="trainsanity"),
        )
    return frozenset(name for each in made for name in vars(each)) | OF_CALLS
