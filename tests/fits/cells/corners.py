"""Corners that everyday scripts reach: no labels, a late start, an early stop, many batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from tests.fits.cells.by_hand import Line, cut, measured, rows, to_date, trained
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.models import NAMED, WEIGHTS, compiled, heads, heads_of, labels
from tests.fits.cells.running import QUICKLY, compile_as, regression, weighted_rows
from tests.fits.cells.steps import fitted, plain_rows

KEEPS_METRICS = keras.backend.backend() != "jax"

# Models


class Unbuilt(keras.Model):
    """Knows its weights from the first batch on."""

    def __init__(self) -> None:
        super().__init__()
        start = keras.initializers.Constant(0.3)
        self.line = layers.Dense(1, kernel_initializer=start)

    def call(self, x: Any) -> Any:
        return self.line(x)


def unbuilt() -> Scene:
    line = Line(np.full((3, 1), 0.3, "float32").astype(float), np.zeros(1), 0.05)
    model = Unbuilt()
    compile_as(line, model, **QUICKLY)
    x, y, weight = weighted_rows()

    def evidence() -> Evidence:
        return Evidence(trained(line, [cut(5, x, y, weight)] * 2))

    return fitted(model, evidence, x, y, sample_weight=weight, batch_size=5)


class Squares(layers.Layer):
    """Adds a loss and keeps a metric of its own, where Keras lets layers do so while training."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = keras.metrics.Mean(name="largest")

    def call(self, x: Any) -> Any:
        self.add_loss(ops.mean(ops.square(x)))
        if KEEPS_METRICS:
            self.largest.update_state(ops.max(x))
        return x


def added_loss_alone() -> Scene:
    """No labels, no compiled loss: the layer's own loss is all there is."""
    x = rows()
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), Squares()])
    line = Line.of(outputs=2, rate=0.0)
    model.set_weights(line.weights())
    model.compile(keras.optimizers.SGD(0.0), **QUICKLY)

    def evidence() -> Evidence:
        outputs = [line(b) for (b,) in cut(5, x)]
        losses = [float(np.square(o).mean()) for o in outputs]
        shown = to_date([[(v, 1.0) for v in losses]])
        signals = {
            "loss/added": losses,
            "loss/differentiated": losses,
            "loss/reported": shown,
            "batch/size": [5, 5],
        }
        if KEEPS_METRICS:
            signals["largest/reported"] = to_date([[(float(o.max()), 1.0) for o in outputs]])
        return Evidence(signals, absent=("loss/batch", "loss/elements"))

    return fitted(model, evidence, x, batch_size=5, epochs=1)


def weight_of_the_only_loss() -> Scene:
    line, (x, y) = Line.of(rate=0.05 * 0.4), plain_rows()
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.set_weights(line.weights())
    model.compile(keras.optimizers.SGD(0.05), "mse", loss_weights=0.4, **QUICKLY)

    def evidence() -> Evidence:
        epochs = [[(line.learn(bx, by), None) for bx, by in cut(5, x, y)] for _ in range(2)]
        names = ("loss/batch", "loss/reported", "loss/recomputed")
        return Evidence({name: 0.4 * np.asarray(measured(epochs)[name]) for name in names})

    return fitted(model, evidence, x, y, batch_size=5)


def outputs_with_a_short_batch(weighted: Callable[[int], float]) -> Scene:
    """`weighted`: what Keras weighs the loss of one output in a batch of so many rows with."""
    lines, y = heads(), labels()
    inputs, outputs = heads_of(lines)
    model = compiled(
        keras.Model(inputs, outputs),
        loss={"near": "mse", "far": "mse"},
        loss_weights=dict(WEIGHTS),
    )

    def evidence() -> Evidence:
        x, found, total = rows(), {}, np.zeros(3)
        for name, line in lines.items():
            parts = cut(4, x, y[name])
            losses = [float(np.square(line.learn(bx, by)).mean()) for bx, by in parts]
            weights = [weighted(len(bx)) for bx, _ in parts]
            pairs = [(v * w, w) for v, w in zip(losses, weights, strict=True)]
            found[f"{NAMED[name]}loss/reported"] = to_date([pairs])
            total += WEIGHTS[name] * np.array(losses)
        pairs = [(v * n, n) for v, n in zip(total, (4.0, 4.0, 2.0), strict=True)]
        for witness in ("reported", "recomputed"):
            found[f"loss/{witness}"] = to_date([pairs])
        return Evidence({**found, "loss/batch": total})

    return fitted(model, evidence, rows(), y, epochs=1)


# Steps


class Wrapping(keras.Sequential):
    """Shows one number more than Keras' own step, and another loss while it is tested."""

    def train_step(self, *given: Any) -> Any:
        result = super().train_step(*given)
        if isinstance(result, tuple):
            return {**result[0], "twice": 2 * result[0]["mae"]}, result[1]
        return {**result, "twice": 2 * result["mae"]}

    def test_step(self, *given: Any) -> Any:
        result = super().test_step(*given)
        if isinstance(result, tuple):
            return {**result[0], "loss": result[0]["mae"]}, result[1]
        return {**result, "loss": result["mae"]}


def around_keras_own_step() -> Scene:
    line, (x, y) = Line.of(), plain_rows()
    model = Wrapping([keras.Input((3,)), layers.Dense(1)])
    model.set_weights(line.weights())
    compile_as(line, model)

    def evidence() -> Evidence:
        epochs = [[(line.learn(bx, by), None) for bx, by in cut(5, x, y)] for _ in range(2)]
        signals = measured(epochs)
        signals["twice/reported"] = 2 * signals["mae/reported"]
        return Evidence(signals)

    return fitted(model, evidence, x, y, batch_size=5)


def own_test_step() -> Scene:
    """What a step of the user's shows in a test pass, beside what was computed."""
    line, (x, y) = Line.of(), plain_rows()
    model = Wrapping([keras.Input((3,)), layers.Dense(1)])
    model.set_weights(line.weights())
    compile_as(line, model, **QUICKLY)

    def train(callbacks: list[Any]) -> Any:
        return model.evaluate(x, y, batch_size=5, verbose=0, callbacks=callbacks, return_dict=True)

    def evidence() -> list[Evidence]:
        signals = measured([[(line(bx) - by, None) for bx, by in cut(5, x, y)]])
        signals["loss/reported"] = signals["mae/reported"]
        return [Evidence(signals)]

    return Scene([model], train, evidence)


# Calls


class Stopping(keras.callbacks.Callback):
    """Ends training after the second batch of the second epoch."""

    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.epoch == 1 and batch >= 1:
            self.model.stop_training = True


def stopped() -> Scene:
    line, (x, y, weight) = Line.of(), weighted_rows()
    model = regression(line)

    def train(callbacks: list[Any]) -> Any:
        options = {"batch_size": 4, "epochs": 5, "shuffle": False, "verbose": 0}
        listed = [*callbacks, Stopping()]
        return model.fit(x, y, sample_weight=weight, **options, callbacks=listed).history

    def evidence() -> list[Evidence]:
        batches = cut(4, x, y, weight)
        return [Evidence(trained(line, [batches, batches[:2]]), batches=(3, 2))]

    return Scene([model], train, evidence)


def compiled_anew() -> Scene:
    """Between two fits with one callback the model gets another loss weight and optimizer."""
    line, (x, y, weight) = Line.of(), weighted_rows()
    model = regression(line, **QUICKLY)
    options = {"batch_size": 5, "shuffle": False, "verbose": 0}

    def train(callbacks: list[Any]) -> Any:
        first = model.fit(x, y, **options, callbacks=callbacks).history
        line.rate = 0.01
        compile_as(line, model, **QUICKLY)
        again = model.fit(x, y, sample_weight=weight, **options, callbacks=callbacks).history
        return first, again

    def evidence() -> list[Evidence]:
        line.rate = 0.05
        first = measured([[(line.learn(bx, by), None) for bx, by in cut(5, x, y)]])
        line.rate = 0.01
        return [Evidence(first), Evidence(trained(line, [cut(5, x, y, weight)]))]

    return Scene([model], train, evidence)


def many_batches(steps: int, **options: Any) -> Scene:
    """More than the ring holds: `steps` batches of two rows."""
    x, y, weight = weighted_rows(2 * steps)
    line = Line.of(rate=0.01)
    model = regression(line, **options)

    def evidence() -> Evidence:
        batches = cut(2, x, y, weight)
        return Evidence(trained(line, [batches, batches]), batches=(steps, steps))

    return fitted(model, evidence, x, y, sample_weight=weight, batch_size=2)


def of_rows(count: int) -> float:
    return float(count)


def alike(count: int) -> float:
    return 1.0


GROUP = "corners"
COMPILED = ("tensorflow", "jax")

CELLS = [
    Cell(GROUP, "model without weights before fit", unbuilt),
    Cell(GROUP, "add_loss alone, no labels", added_loss_alone),
    Cell(GROUP, "loss_weights of the only output", weight_of_the_only_loss),
    Cell(
        GROUP,
        "two outputs, short last batch",
        partial(outputs_with_a_short_batch, of_rows),
        ("jax", "torch"),
    ),
    Cell(
        GROUP,
        "two outputs, short last batch in a graph",
        # Keras 3.15.1 does not know how many rows a batch has there, and counts each as one.
        partial(outputs_with_a_short_batch, alike),
        ("tensorflow",),
    ),
    Cell(GROUP, "train_step around Keras' own", around_keras_own_step),
    Cell(GROUP, "own test_step, evaluate", own_test_step),
    Cell(GROUP, "stopped in the middle of an epoch", stopped),
    Cell(GROUP, "compiled anew between two fits", compiled_anew),
    Cell(GROUP, "300 batches", partial(many_batches, 300), rtol=5e-5),
    Cell(
        GROUP,
        "300 batches, 16 steps an execution",
        partial(many_batches, 300, steps_per_execution=16),
        COMPILED,
        rtol=5e-5,
    ),
]
