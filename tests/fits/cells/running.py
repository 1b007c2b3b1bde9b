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


NORMS = ("weights/sampled_norm", "update/sampled_norm")
INSIDE = ("loss/recomputed", "mae/recomputed", "gradient/norm", "learning_rate/effective")
AROUND = (  # what is seen of a step from outside
    *("batch/size", "loss/reported", "mae/reported", "mse/reported"),
    *("sample_weight/given_mean", "optimizer/iterations"),
)


def compiled_by_torch() -> Scene:
    """The compiled step is the user's alone: no tap is in it, and none makes torch compile more."""
    import torch

    scene = on_arrays(count=8, jit_compile=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def train(callbacks: list[Any]) -> Any:
        history = scene.train(callbacks)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs > 0
        return {**history, "graphs": graphs}

    def evidence() -> list[Evidence]:
        line, batches = Line.of(), cut(4, *weighted_rows(8))
        before = np.concatenate([w.reshape(-1) for w in line.weights()])
        found = {name: [] for name in NORMS}
        for _ in range(2):
            for batch in batches:
                line.learn(*batch)
                after = np.concatenate([line.kernel.reshape(-1), line.bias])
                found["weights/sampled_norm"].append(np.linalg.norm(after))
                found["update/sampled_norm"].append(np.linalg.norm(after - before))
                before = after
        every = trained(Line.of(), [batches] * 2)
        found |= {name: every[name] for name in AROUND}
        found["weights/moved_outside"] = [np.nan, 0.0, 0.0, 0.0]
        x = [b[0] for b in batches] * 2
        found |= {"inputs/mean": [each.mean() for each in x], "inputs/max": [e.max() for e in x]}
        reasons = {"taps": "torch.compile", "paths/execution": "torch.compile"}
        return [Evidence(found, absent=INSIDE, reasons=reasons, batches=(2, 2))]

    return Scene(scene.models, train, evidence)


GROUP = "running"
COMPILED = ("tensorflow", "jax")

CELLS = [
    Cell(GROUP, "graph", partial(on_arrays, jit_compile=False), ("tensorflow",)),
    Cell(GROUP, "eager", partial(on_arrays, run_eagerly=True)),
    Cell(GROUP, "XLA", partial(on_arrays, jit_compile=True), COMPILED),
    Cell(GROUP, "torch.compile", compiled_by_torch, ("torch",), warns="The .grad attribute of a"),
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
