"""What scripts do around `fit`: folds, trials of a tuner, threads, several models at a time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from tests.fits.cells.by_hand import Line, cut, trained
from tests.fits.cells.calling import FIT, UNSEEN, batches, seen, weighed
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.running import QUICKLY, regression, weighted_rows

Callbacks = list[Any]


def same(callbacks: Callbacks) -> Callbacks:
    return callbacks


def copied(callbacks: Callbacks) -> Callbacks:
    """As keras-tuner does for each trial."""
    return [copy.deepcopy(callback) for callback in callbacks]


def forgetting(callbacks: Callbacks) -> Callbacks:
    """The same ones, after everything that Keras keeps between models has been thrown away."""
    keras.utils.clear_session()
    return callbacks


def folds(handed_on: Callable[[Callbacks], Callbacks]) -> Scene:
    """A new model for each of three folds; `handed_on`: the callbacks that its `fit` gets."""
    x, y, weight = weighted_rows(12)
    models: list[Any] = []

    def parts() -> Any:
        for fold in range(3):
            held = np.arange(12) % 3 == fold
            yield [a[~held] for a in (x, y, weight)], (x[held], y[held])

    def train(callbacks: Callbacks) -> Any:
        histories = []
        for (kx, ky, kw), held in parts():
            these = handed_on(callbacks)
            models.append(regression(Line.of(), **QUICKLY))
            options = {"sample_weight": kw, "validation_data": held, "callbacks": these}
            histories.append(models[-1].fit(kx, ky, **FIT, **options).history)
        return histories

    def evidence() -> list[Evidence]:
        found = []
        for kept, held in parts():
            line = Line.of()
            signals = trained(line, [cut(4, *kept)])
            shown = {f"val_{name}": {2: v} for name, v in seen(line, *held).items()}
            found.append(Evidence(signals, shown, batches=(2,)))
        return found

    return Scene(models, train, evidence)


def in_turns() -> Scene:
    """Two models, each with a callback of its own, learn for an epoch each, twice."""
    lines = [Line.of(), Line.of(rate=0.01)]
    models = [regression(line, run_eagerly=True) for line in lines]

    def train(callbacks: Callbacks) -> Any:
        of_each = [callbacks, copied(callbacks)]
        return [
            model.fit(**weighed(), **FIT, callbacks=own).history
            for _ in range(2)
            for model, own in zip(models, of_each, strict=True)
        ]

    def evidence() -> list[Evidence]:
        found = []
        for epoch in range(2):
            for line in lines:
                signals = trained(line, [batches()])
                signals["optimizer/iterations"] = signals["optimizer/iterations"] + 3 * epoch
                found.append(Evidence(signals, batches=(3,)))
        return found

    return Scene(models, train, evidence)


class FittingAnother(keras.callbacks.Callback):
    """Trains another model after each batch of the first epoch."""

    def __init__(self, model: Any, callbacks: Callbacks) -> None:
        super().__init__()
        self.another, self.callbacks, self.epoch = model, callbacks, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.epoch == 0 and batch == 1:
            self.another.fit(*UNSEEN, **FIT, callbacks=self.callbacks)


def another_inside() -> Scene:
    """A model is trained in the middle of an epoch of another one, both watched."""
    outer, inner = Line.of(), Line.of(rate=0.01)
    models = [regression(line, **QUICKLY) for line in (outer, inner)]

    def train(callbacks: Callbacks) -> Any:
        listed = [*callbacks, FittingAnother(models[1], copied(callbacks))]
        return models[0].fit(**weighed(), **FIT, epochs=2, callbacks=listed).history

    def evidence() -> list[Evidence]:
        of_inner = [(x, y, None) for x, y in cut(4, *UNSEEN)]
        return [
            Evidence(trained(outer, [batches()] * 2), batches=(3, 3)),
            Evidence(trained(inner, [of_inner]), batches=(2,)),
        ]

    return Scene(models, train, evidence)


class Started(keras.callbacks.Callback):
    """Says that training has begun: the order of runs is that of their beginnings."""

    def __init__(self) -> None:
        super().__init__()
        self.said = threading.Event()

    def on_train_begin(self, logs: Any = None) -> None:
        self.said.set()


def in_threads(count: int) -> Scene:
    """So many models at once, each in a thread with a callback of its own."""
    lines = [Line.of(rate=0.05 / (i + 1)) for i in range(count)]
    models = [regression(line, **QUICKLY) for line in lines]

    def train(callbacks: Callbacks) -> Any:
        histories: dict[int, Any] = {}

        def fit(place: int, own: Callbacks) -> None:
            data = weighed(8 + 4 * place)
            histories[place] = models[place].fit(**data, **FIT, epochs=2, callbacks=own).history

        threads = []
        for place in range(count):
            started = Started()
            own = [*copied(callbacks), started]
            threads.append(threading.Thread(target=fit, args=(place, own)))
            threads[-1].start()
            assert started.said.wait(60)
        for thread in threads:
            thread.join()
        return [histories[place] for place in range(count)]

    def evidence() -> list[Evidence]:
        return [
            Evidence(trained(line, [batches(8 + 4 * i)] * 2), batches=(2 + i,) * 2)
            for i, line in enumerate(lines)
        ]

    return Scene(models, train, evidence)


GROUP = "scripts"

CELLS = [
    Cell(GROUP, "folds, one callback used again", partial(folds, same)),
    Cell(GROUP, "trials of a tuner, a copy for each", partial(folds, copied), ("tensorflow",)),
    Cell(GROUP, "clear_session before each fit", partial(folds, forgetting)),
    Cell(GROUP, "two models in turns, two callbacks", in_turns),
    Cell(GROUP, "fit of another model inside a callback", another_inside),
    Cell(GROUP, "in a thread", partial(in_threads, 1)),
    Cell(GROUP, "two at once in threads", partial(in_threads, 2)),
]
