"""How a random model is trained: optimizer, schedule, compilation, data and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import callbacks, optimizers

from random_fits.problems import Array, Problem, Rng

schedules = optimizers.schedules

# Rates with which these small models learn; (class, arguments).
OPTIMIZERS: tuple[tuple[Callable[..., Any], float, dict[str, Any]], ...] = (
    (optimizers.SGD, 0.02, {}),
    (optimizers.SGD, 0.01, {"momentum": 0.9}),
    (optimizers.SGD, 0.01, {"momentum": 0.8, "nesterov": True}),
    (optimizers.Adam, 0.003, {}),
    (optimizers.Adam, 0.003, {}),
    (optimizers.Adam, 0.002, {"amsgrad": True}),
    (optimizers.AdamW, 0.003, {"weight_decay": 0.01}),
    (optimizers.Nadam, 0.002, {}),
    (optimizers.Adamax, 0.005, {}),
    (optimizers.Adagrad, 0.03, {}),
    (optimizers.Adadelta, 0.5, {}),
    (optimizers.RMSprop, 0.002, {}),
    (optimizers.RMSprop, 0.002, {"momentum": 0.5, "centered": True}),
    (optimizers.Ftrl, 0.05, {}),
    (optimizers.Lion, 0.0005, {}),
    (optimizers.Lamb, 0.005, {}),
    (optimizers.Adafactor, 0.005, {}),
)


def any_optimizer(rng: Rng, problem: Problem) -> tuple[Any, str]:
    """An optimizer, and words for it."""
    kind, rate, arguments = OPTIMIZERS[rng.integers(len(OPTIMIZERS))]
    extra = dict(arguments)
    draw = rng.random()
    if draw < 0.1:
        extra["clipnorm"] = 1.0
    elif draw < 0.2:
        extra["global_clipnorm"] = 1.0
    elif draw < 0.25:
        extra["clipvalue"] = 0.5
    elif draw < 0.35:
        extra |= {"use_ema": True, "ema_overwrite_frequency": [None, 5][rng.integers(2)]}
    elif draw < 0.42 and not _has_table(problem):
        extra["gradient_accumulation_steps"] = int(rng.integers(2, 4))
    elif draw < 0.47:
        extra["weight_decay"] = 0.004
    schedule, words = any_schedule(rng, rate)
    told = ", ".join(f"{name}={value}" for name, value in extra.items())
    return kind(schedule, **extra), f"{kind.__name__}({words}{', ' if told else ''}{told})"


def _has_table(problem: Problem) -> bool:
    """Keras 3.15 cannot accumulate the sparse gradients of an embedding in every optimizer."""
    layers = problem.model._flatten_layers()
    return any(isinstance(layer, keras.layers.Embedding) for layer in layers)


def any_schedule(rng: Rng, rate: float) -> tuple[Any, str]:
    kinds: list[Callable[[], Any]] = [
        lambda: schedules.ExponentialDecay(rate, 20, 0.8),
        lambda: schedules.CosineDecay(0.0, 40, warmup_target=rate, warmup_steps=6),
        lambda: schedules.CosineDecayRestarts(rate, 10),
        lambda: schedules.PolynomialDecay(rate, 30),
        lambda: schedules.PiecewiseConstantDecay([10, 20], [rate, rate / 2, rate / 10]),
        lambda: schedules.InverseTimeDecay(rate, 10, 0.5),
    ]
    if rng.random() < 0.6:
        return rate, str(rate)
    schedule = kinds[rng.integers(len(kinds))]()
    return schedule, type(schedule).__name__


@dataclass(frozen=True)
class Feed:
    """What `fit` gets."""

    words: str
    arguments: dict[str, Any]


class Batches(keras.utils.PyDataset):
    """Batches of arrays; the last one is short."""

    def __init__(self, parts: tuple[Any, ...], size: int):
        super().__init__()
        self.parts, self.size = parts, size

    def __len__(self) -> int:
        return -(-_rows(self.parts[0]) // self.size)

    def __getitem__(self, index: int) -> Any:
        return _cut(self.parts, index * self.size, (index + 1) * self.size)


def any_feed(rng: Rng, problem: Problem) -> Feed:
    """The problem's data with or without weights, cut in batches in one of several ways."""
    size = int(rng.choice([4, 8, 16, 32, 50]))
    rows = _rows(problem.x)
    size = max(size, -(-rows // 40))
    weights, weighted = any_weights(rng, problem)
    parts = (problem.x, problem.y) + (() if weights is None else (weights,))
    train, rest = _cut(parts, 0, rows * 4 // 5), _cut(parts, rows * 4 // 5, rows)
    validation = rest if rng.random() < 0.5 else None
    arguments: dict[str, Any] = {"epochs": int(rng.integers(1, 5)), "validation_data": validation}
    kind = str(rng.choice(["arrays", "arrays", "tf.data", "PyDataset", "generator"]))
    if kind == "arrays":
        arguments |= {"x": train[0], "y": train[1], "batch_size": size}
        arguments |= {"shuffle": bool(rng.random() < 0.8)}
        arguments |= {"sample_weight": train[2]} if weights is not None else {}
    elif kind == "tf.data":
        arguments |= {"x": _dataset(rng, train, size)}
    elif kind == "PyDataset":
        arguments |= {"x": Batches(train, size)}
    else:
        arguments |= {"x": _endless(train, size), "steps_per_epoch": _rows(train[0]) // size or 1}
    words = f"{kind}, {_rows(train[0])} rows by {size}, {arguments['epochs']} epochs{weighted}"
    return Feed(words + (", validated" if validation else ""), arguments)


def any_weights(rng: Rng, problem: Problem) -> tuple[Array | None, str]:
    """Weights for each row, or each position of one, drawn without regard to them."""
    if isinstance(problem.y, dict) or rng.random() < 0.75:
        return None, ""
    functional = hasattr(problem.model, "outputs")
    positions = problem.model.outputs[0].shape[1:-1] if functional else ()
    shape = (_rows(problem.x), *problem.y.shape[1 : 1 + len(positions)])
    return rng.choice([0.5, 1.0, 2.0], size=shape).astype("float32"), ", weighted"


def _dataset(rng: Rng, parts: tuple[Any, ...], size: int) -> Any:
    import tensorflow as tf

    parts = tuple(tuple(part) if isinstance(part, list) else part for part in parts)
    data = tf.data.Dataset.from_tensor_slices(parts)
    if rng.random() < 0.6:
        data = data.shuffle(64, seed=3)
    data = data.batch(size, drop_remainder=bool(rng.random() < 0.3))
    return data.prefetch(2) if rng.random() < 0.5 else data


def _endless(parts: tuple[Any, ...], size: int) -> Iterator[Any]:
    whole = max(_rows(parts[0]) // size, 1)
    while True:
        for index in range(whole):
            yield _cut(parts, index * size, (index + 1) * size)


def _rows(part: Any) -> int:
    while isinstance(part, (dict, list, tuple)):
        part = next(iter(part.values())) if isinstance(part, dict) else part[0]
    return len(part)


def _cut(part: Any, begin: int, end: int) -> Any:
    """Rows of arrays in tuples, lists and dicts; lists become tuples, as generators need it."""
    if isinstance(part, dict):
        return {name: _cut(inner, begin, end) for name, inner in part.items()}
    if isinstance(part, (tuple, list)):
        return tuple(_cut(inner, begin, end) for inner in part)
    return np.asarray(part)[begin:end]


def any_compilation(rng: Rng, problem: Problem, optimizer: Any) -> dict[str, Any]:
    """Arguments of `compile` beside optimizer, loss and metrics.

    XLA takes minutes to compile recurrent layers for the CPU, so they go without. Keras on torch
    refuses several steps per execution.
    """
    draw = rng.random()
    recurrent = (keras.layers.RNN, keras.layers.Bidirectional)
    has_loop = any(isinstance(layer, recurrent) for layer in problem.model._flatten_layers())
    if draw < 0.2 and not has_loop:
        return {"jit_compile": True}
    may_be_several = (
        optimizer.gradient_accumulation_steps is None and keras.backend.backend() != "torch"
    )
    if draw < 0.3 and may_be_several:
        return {"steps_per_execution": int(rng.integers(2, 5))}
    return {"run_eagerly": True} if draw < 0.36 else {}


def any_callbacks(
    rng: Rng, problem: Problem, optimizer: Any, folder: Path, *, validated: bool
) -> list[Any]:
    watched, best = "val_loss" if validated else "loss", folder / "best.weights.h5"
    some: list[Callable[[], Any]] = [
        lambda: callbacks.EarlyStopping(watched, patience=1, restore_best_weights=True),
        lambda: callbacks.ModelCheckpoint(best, watched, save_weights_only=True),
        lambda: callbacks.TerminateOnNaN(),
        lambda: callbacks.CSVLogger(folder / "log.csv"),
    ]
    if problem.model.built:
        some.append(lambda: callbacks.BackupAndRestore(folder / "backup"))
    if not isinstance(optimizer._learning_rate, schedules.LearningRateSchedule):
        some.append(lambda: callbacks.ReduceLROnPlateau(watched, patience=0, min_delta=0.01))
        some.append(lambda: callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9))
    if optimizer.use_ema:
        some.append(lambda: callbacks.SwapEMAWeights())
    return [make() for make in some if rng.random() < 0.12]


def any_policy(rng: Rng) -> str:
    policies = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float64"]
    drawn = str(rng.choice(policies, p=[0.65, 0.12, 0.12, 0.05, 0.06]))
    # Elsewhere it is none: JAX makes float32 of it, and Keras on torch multiplies in float32.
    return "float32" if drawn == "float64" and keras.backend.backend() != "tensorflow" else drawn
