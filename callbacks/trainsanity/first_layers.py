"""The layers in which the weights of a model first meet its inputs."""

from __future__ import annotations

from typing import Any

import keras

from trainsanity.origin import is_of_keras

# They have weights, yet only scale: what matters is what leaves them.
SCALERS = (keras.layers.Normalization, keras.layers.BatchNormalization)


def first_weighted_layers(model: Any) -> list[tuple[str, Any]]:
    """For each floating-point input of a functional model: its name and first layer with weights.

    Only Keras' own layers are given, as only those are safe to wrap. The name is "" for the only
    input.
    """
    inputs = getattr(model, "inputs", None) or []
    found = []
    for tensor in inputs:
        if keras.backend.is_float_dtype(tensor.dtype):
            layer = _first_behind(tensor)
            if layer is not None and is_of_keras(type(layer)):
                name = tensor._keras_history.operation.name
                found.append(("" if len(inputs) == 1 else name, layer))
    return found


def fed_layers(model: Any, x: Any) -> list[tuple[Any, Any]]:
    """The layers of a functional model that take an input just as it comes, each with this one's
    part of a batch; none where it is not certain which part is whose.
    """
    inner = getattr(model, "_functional", None) or model
    structure, tensors = getattr(inner, "_inputs_struct", None), getattr(inner, "inputs", None)
    leaves = keras.tree.flatten(x)
    if not tensors or len(tensors) != len(leaves) or not _same_keys(structure, x):
        return []
    own = {id(layer) for layer in inner.layers}
    found = []
    for tensor, leaf in zip(tensors, leaves, strict=True):
        history = tensor._keras_history
        for node in history.operation._outbound_nodes:
            takes = _takes(node, history.operation, history.tensor_index)
            if leaf is not None and takes and id(node.operation) in own:
                found.append((node.operation, leaf))
    return found


def _same_keys(structure: Any, x: Any) -> bool:
    """Keras finds parts by their keys where both have some."""
    if isinstance(structure, dict) and isinstance(x, dict):
        return set(structure) == set(x)
    return not isinstance(structure, dict) and not isinstance(x, dict)


def _first_behind(tensor: Any) -> Any | None:
    """Follows a symbolic tensor to the first layer with weights, into nested models too."""
    history = getattr(tensor, "_keras_history", None)
    while history is not None:
        operation, index = history.operation, history.tensor_index
        consumers = [n for n in operation._outbound_nodes if _takes(n, operation, index)]
        if not consumers:
            return None
        operation = consumers[0].operation
        if _has_weights(operation):
            inner = getattr(operation, "inputs", None)
            if isinstance(operation, keras.Model):
                return _first_behind(inner[0]) if inner and len(inner) == 1 else None
            return operation
        history = consumers[0].outputs[0]._keras_history
    return None


def _takes(node: Any, operation: Any, index: int) -> bool:
    histories = (t._keras_history for t in node.arguments.keras_tensors)
    return any(h.operation is operation and h.tensor_index == index for h in histories)


def _has_weights(operation: Any) -> bool:
    if isinstance(operation, SCALERS):
        return False
    if isinstance(operation, keras.Model) and operation.layers:
        return any(_has_weights(layer) for layer in operation.layers)
    return bool(getattr(operation, "weights", None))
