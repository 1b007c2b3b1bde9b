"""What Keras' optimizers hold, also those that wrap others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src import optimizers as optimizers_of_keras

from trainsanity.origin import is_of_keras

Read = Callable[[Any], Any]

# Optimizers of Keras that keep something for every weight, whatever their options.
WITH_SLOTS = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lamb",
    "Lion",
    "Muon",
    "Nadam",
    "RMSprop",
)


def working(optimizer: Any) -> Any:
    """The optimizer that moves the weights: loss scaling wraps it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def parts(optimizer: Any) -> list[Any]:
    """The optimizers that update weights: several behind a `MultiOptimizer`, else the one."""
    inner = getattr(optimizer, "_inner_optimizers", None)
    return [optimizer] if inner is None else list(inner)


def of_model(model: Any) -> dict[str, Any]:
    """Every optimizer that a model holds: "" is the compiled one, others are called by their
    attribute.
    """
    found: dict[str, Any] = {}
    compiled = getattr(model, "optimizer", None)
    if isinstance(compiled, keras.optimizers.Optimizer):
        several = parts(compiled)
        names = [""] if len(several) == 1 else [part.name for part in several]
        found.update(zip(names, several, strict=True))
    for name, value in vars(model).items():
        is_new = not any(value is known for known in [compiled, *found.values()])
        if isinstance(value, keras.optimizers.Optimizer) and is_new:
            found[name] = value
    return found


def is_python_rate(rate: Any) -> bool:
    """Whether a learning rate is a function of the user's, called while a step is traced."""
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return callable(rate) and not is_schedule and not isinstance(rate, keras.Variable)


def accumulation(optimizer: Any) -> int | None:
    """Batches whose gradients make up one update; None where each batch makes one."""
    steps = getattr(working(optimizer), "gradient_accumulation_steps", None)
    return int(steps) if steps else None


def updates(optimizer: Any, read: Read) -> int:
    """Updates of the weights so far, as the optimizer counts them."""
    return int(read(working(optimizer)._iterations)) // (accumulation(optimizer) or 1)


def config_of(optimizer: Any) -> dict[str, Any]:
    """Its configuration; empty where its class has none."""
    try:
        return dict(optimizer.get_config())
    except NotImplementedError:
        return {}


def fresh(optimizer: Any, **changed: Any) -> Any | None:
    """A new optimizer of the same class and configuration; None where it cannot be made from it."""
    config = {**config_of(optimizer), **changed}
    try:
        return type(optimizer).from_config(config)
    except (TypeError, ValueError):
        return None


def defaults(kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of a new optimizer of a class, made by the class and made by its name; both
    empty where Keras makes another class of the name.
    """
    try:
        by_class, by_name = kind(), optimizers_of_keras.get(kind.__name__.lower())
    except (TypeError, ValueError):
        return {}, {}
    if type(by_name) is not kind:
        return {}, {}
    configs = config_of(by_class), config_of(by_name)
    for config in configs:
        config.pop("name", None)  # Keras numbers them
    return configs


def slot_lists(optimizer: Any) -> list[dict[str, Any]]:
    """Per trained variable: name of the slot's list -> slot variable."""
    count = len(optimizer._trainable_variables)
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in vars(optimizer).items():
        is_list = isinstance(value, (list, tuple)) and len(value) == count and name not in _NO_SLOTS
        if is_list and all(isinstance(v, keras.Variable) for v in value):
            for i, slot in enumerate(value):
                found[i][name] = slot
    return found


# Lists of an optimizer that may be as long as the list of variables, yet are no slots.
_NO_SLOTS = (
    "_trainable_variables",
    "_variables",
    "_model_variables_moving_average",
    "_accumulated_gradients",
)


def always_has_slots(optimizer: Any) -> bool:
    """Whether Keras makes variables when it builds this optimizer for weights, whatever its
    options; never said of a class of the user's.
    """
    if type(optimizer) is keras.optimizers.SGD:
        return bool(optimizer.momentum)
    return type(optimizer).__name__ in WITH_SLOTS and is_of_keras(type(optimizer))
