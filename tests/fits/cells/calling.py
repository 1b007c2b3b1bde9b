"""Several calls: one after the other, inside each other, with validation, evaluation alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from tests.fits.cells.by_hand import Line, cut, measured, rows, trained
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.running import QUICKLY, regression, weighted_rows

UNSEEN = (rows(7, seed=8), rows(7, 1, seed=9))  # in batches of four and three
FIT = {"batch_size": 4, "shuffle": False, "verbose": 0}


def weighed(count: int = 10) -> dict[str, Any]:
    x, y, weight = weighted_rows(count)
    return {"x": x, "y": y, "sample_weight": weight}


def batches(count: int = 10) -> list[Any]:
    return cut(4, *weighted_rows(count))


# One after the other


def twice(*, again: bool) -> Scene:
    """Two calls of `fit` on one model, with one callback object used again or with a copy."""
    line = Line.of()
    model = regression(line, **QUICKLY)

    def train(callbacks: list[Any]) -> Any:
        first = model.fit(**weighed(), **FIT, epochs=2, callbacks=callbacks).history
        others = callbacks if again else [copy.deepcopy(c) for c in callbacks]
        return first, model.fit(**weighed(8), **FIT, callbacks=others).history

    def evidence() -> list[Evidence]:
        first = trained(line, [batches()] * 2)
        second = trained(line, [batches(8)])
        second["optimizer/iterations"] = second["optimizer/iterations"] + 6
        return [Evidence(first, batches=(3, 3)), Evidence(second, batches=(2,))]

    return Scene([model], train, evidence)


def after_a_plain_fit() -> Scene:
    """The step that Keras has compiled before is made anew, and put back."""
    line = Line.of()
    model = regression(line, **QUICKLY)

    def train(callbacks: list[Any]) -> Any:
        fits = [[], callbacks, []]
        return [model.fit(**weighed(), **FIT, callbacks=these).history for these in fits]

    def evidence() -> list[Evidence]:
        trained(line, [batches()])
        found = trained(line, [batches()])
        found["optimizer/iterations"] = found["optimizer/iterations"] + 3
        return [Evidence(found, batches=(3,))]

    return Scene([model], train, evidence)


# Validation


def validated(
    epochs: int, at: Sequence[int], *, compiled: dict[str, Any] | None = None, **options: Any
) -> Scene:
    """`at`: epochs after which a validation pass runs, counted from 1."""
    line = Line.of()
    model = regression(line, **(QUICKLY if compiled is None else compiled))

    def train(callbacks: list[Any]) -> Any:
        return model.fit(
            **weighed(),
            **FIT,
            epochs=epochs,
            validation_data=UNSEEN,
            callbacks=callbacks,
            **options,
        ).history

    def evidence() -> list[Evidence]:
        runs, shown = [], {}
        for epoch in range(1, epochs + 1):
            runs.append([(line.learn(x, y, w), w) for x, y, w in batches()])
            if epoch in at:
                shown[3 * epoch] = seen(line, *UNSEEN)
        sparse = {
            f"val_{name}": {step: values[name] for step, values in shown.items()}
            for name in next(iter(shown.values()))
        }
        return [Evidence(measured(runs), sparse, batches=(3,) * epochs)]

    return Scene([model], train, evidence)


def seen(line: Line, x: Any, y: Any) -> dict[str, float]:
    """What a test pass shows at its end."""
    passed = measured([[(line(bx) - by, None) for bx, by in cut(4, x, y)]])
    names = [f"{key}/{w}" for key in ("loss", "mae", "mse") for w in ("reported", "recomputed")]
    return {name: float(passed[name][-1]) for name in names}


def validated_in_parts() -> Scene:
    """After each epoch the first of three batches."""
    line = Line.of()
    model = regression(line, **QUICKLY)
    unseen = (rows(12, seed=8), rows(12, 1, seed=9))

    def train(callbacks: list[Any]) -> Any:
        options = {"epochs": 2, "validation_data": unseen, "validation_steps": 1}
        return model.fit(**weighed(), **FIT, **options, callbacks=callbacks).history

    def evidence() -> list[Evidence]:
        runs, shown = [], {}
        for step in (3, 6):
            runs.append([(line.learn(x, y, w), w) for x, y, w in batches()])
            shown[step] = seen(line, *cut(4, *unseen)[0])
        sparse = {
            f"val_{name}": {step: values[name] for step, values in shown.items()}
            for name in shown[3]
        }
        return [Evidence(measured(runs), sparse, batches=(3, 3))]

    return Scene([model], train, evidence)


def split() -> Scene:
    """The last two of ten rows validate, with their weights."""
    line = Line.of()
    model = regression(line, **QUICKLY)

    def train(callbacks: list[Any]) -> Any:
        return model.fit(
            **weighed(), **FIT, epochs=2, validation_split=0.2, callbacks=callbacks
        ).history

    def evidence() -> list[Evidence]:
        x, y, weight = weighted_rows()
        runs, shown = [], {}
        for step in (2, 4):
            parts = cut(4, x[:8], y[:8], weight[:8])
            runs.append([(line.learn(bx, by, bw), bw) for bx, by, bw in parts])
            errors = np.square(line(x[8:]) - y[8:])[:, 0]
            shown[step] = float((errors * weight[8:]).mean())
        sparse = {f"val_loss/{w}": shown for w in ("reported", "recomputed")}
        return [Evidence(measured(runs), sparse)]

    return Scene([model], train, evidence)


# Evaluation alone


def evaluated(*, compiled: dict[str, Any] | None = None) -> Scene:
    """Two calls with one callback object, on different data."""
    line = Line.of()
    model = regression(line, **(QUICKLY if compiled is None else compiled))
    options = {"batch_size": 4, "verbose": 0, "return_dict": True}

    def train(callbacks: list[Any]) -> Any:
        first = model.evaluate(**weighed(), **options, callbacks=callbacks)
        return first, model.evaluate(*UNSEEN, **options, callbacks=callbacks)

    def evidence() -> list[Evidence]:
        first = measured([[(line(x) - y, w) for x, y, w in batches()]])
        second = measured([[(line(x) - y, None) for x, y in cut(4, *UNSEEN)]])
        return [Evidence(first), Evidence(second)]

    return Scene([model], train, evidence)


# Inside each other


class Evaluating(keras.callbacks.Callback):
    """Evaluates after each epoch, and hands on the callbacks that it is given."""

    def __init__(self, callbacks: list[Any]) -> None:
        super().__init__()
        self.callbacks = callbacks
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        options = {"batch_size": 3, "verbose": 0, "callbacks": self.callbacks}
        self.seen.append(self.model.evaluate(*UNSEEN, **options))


def evaluated_inside(*, first: bool, handed_on: bool) -> Scene:
    """`first`: that callback stands before ours."""
    line = Line.of()
    model = regression(line, **QUICKLY)

    def train(callbacks: list[Any]) -> Any:
        other = Evaluating(callbacks if handed_on else [])
        listed = [other, *callbacks] if first else [*callbacks, other]
        options = {"epochs": 2, "validation_data": UNSEEN, "callbacks": listed}
        return model.fit(**weighed(), **FIT, **options).history, other.seen

    def evidence() -> list[Evidence]:
        runs, shown = [], {}
        for epoch in (1, 2):
            runs.append([(line.learn(x, y, w), w) for x, y, w in batches()])
            shown[3 * epoch] = seen(line, *UNSEEN)["loss/reported"]
        sparse = {f"val_loss/{w}": shown for w in ("reported", "recomputed")}
        return [Evidence(measured(runs), sparse, batches=(3, 3))]

    return Scene([model], train, evidence)


class Fitting(keras.callbacks.Callback):
    """Trains the same model on other rows after the first epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.model.fit(*UNSEEN, **FIT)


def fitted_inside() -> Scene:
    line = Line.of()
    model = regression(line, **QUICKLY)

    def train(callbacks: list[Any]) -> Any:
        options = {"epochs": 2, "callbacks": [*callbacks, Fitting()]}
        return model.fit(**weighed(), **FIT, **options).history

    def evidence() -> list[Evidence]:
        runs = [[(line.learn(x, y, w), w) for x, y, w in batches()]]
        for x, y in cut(4, *UNSEEN):
            line.learn(x, y)
        runs.append([(line.learn(x, y, w), w) for x, y, w in batches()])
        found = {**measured(runs), "optimizer/iterations": [1, 2, 3, 6, 7, 8]}
        return [Evidence(found, batches=(3, 3))]

    return Scene([model], train, evidence)


GROUP = "calls"
COMPILED = ("tensorflow", "jax")

CELLS = [
    Cell(GROUP, "two fits, one callback used again", partial(twice, again=True)),
    Cell(GROUP, "two fits, each with a callback", partial(twice, again=False)),
    Cell(GROUP, "between two plain fits", after_a_plain_fit),
    Cell(GROUP, "validation_data", partial(validated, 2, (1, 2), compiled={})),
    Cell(
        GROUP, "validation_data, validation_freq", partial(validated, 4, (2, 4), validation_freq=2)
    ),
    Cell(
        GROUP,
        "validation_data, 2 steps an execution",
        partial(validated, 2, (1, 2), compiled={"steps_per_execution": 2}),
        COMPILED,
    ),
    Cell(GROUP, "validation_data, validation_steps", validated_in_parts),
    Cell(GROUP, "validation_split", split),
    Cell(GROUP, "evaluate alone", evaluated),
    Cell(
        GROUP,
        "evaluate alone, 2 steps an execution",
        partial(evaluated, compiled={"steps_per_execution": 2}),
        COMPILED,
    ),
    Cell(
        GROUP,
        "evaluate inside a callback before ours",
        partial(evaluated_inside, first=True, handed_on=False),
    ),
    Cell(
        GROUP,
        "evaluate inside a callback, with ours",
        partial(evaluated_inside, first=False, handed_on=True),
    ),
    Cell(GROUP, "fit inside a callback", fitted_inside),
]
