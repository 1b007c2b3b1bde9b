"""How Keras runs a step: eagerly, as a graph, under XLA, several at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
from tests.fits.cells.by_hand import Line, cut, rows, trained
from tests.fits.cells.cell import Cell, Evidence, Scene

# JAX compiles for seconds, where eager steps take none. The groups `running` and `steps` compile.
QUICKLY = {"run_eagerly": True} if keras.backend.backend() == "jax" else {}


def regression(line: Line, **options: Any) -> keras.Model:
    """A linear model that is trained as `line` is."""
    width, outputs = line.kernel.shape
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(outputs)])
    model.set_weights(line.weights())
    compile_as(line, model, **options)
    return model


def compile_as(line: Line, model: keras.Model, **options: Any) -> None:
    model.compile(
        keras.optimizers.SGD(line.rate),
        "mse",
        metrics=["mae"],
        weighted_metrics=["mse"],
        **options,
    )


def weighted_rows(count: int = 10) -> tuple[Any, Any, Any]:
    """Inputs, labels and sample weights."""
    return rows(count), rows(count, 1, seed=6), np.linspace(0.2, 1.8, count).astype("float32")


def on_arrays(*, epochs: int = 2, batch_size: int = 4, count: int = 10, **compiled: Any) -> Scene:
    line, (x, y, weight) = Line.of(), weighted_rows(count)
    model = regression(line, **compiled)

    def train(callbacks: list[Any]) -> Any:
        return model.fit(
            x,
            y,
            sample_weight=weight,
            batch_size=batch_size,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        ).history

    batches = cut(batch_size, x, y, weight)
    return Scene([model], train, lambda: [Evidence(trained(line, [batches] * epochs))])


GROUP = "running"
COMPILED = ("tensorflow", "jax")

CELLS = [
    Cell(GROUP, "graph", partial(on_arrays, jit_compile=False), ("tensorflow",)),
    Cell(GROUP, "eager", partial(on_arrays, run_eagerly=True)),
    Cell(GROUP, "XLA", partial(on_arrays, jit_compile=True), COMPILED),
    Cell(
        GROUP,
        "16 steps an execution, 3 a epoch",
        partial(on_arrays, steps_per_execution=16),
        COMPILED,
    ),
    Cell(
        GROUP,
        "XLA, 16 steps an execution, 20 a epoch",
        partial(on_arrays, jit_compile=True, steps_per_execution=16, count=80),
        ("tensorflow",),
    ),
    Cell(
        GROUP,
        "2 steps an execution, the last one short",
        partial(on_arrays, steps_per_execution=2),
        COMPILED,
    ),
]
