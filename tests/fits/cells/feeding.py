"""Where the batches come from: every kind of data that Keras takes, and how long it says it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from tests.fits.cells.by_hand import Line, cut, trained
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.running import QUICKLY, regression, weighted_rows

BATCHES = cut(4, *weighted_rows())  # three; the last one has two rows


def fed(
    feed: Callable[[], dict[str, Any]],
    epochs: list[list[Any]],
    *,
    compiled: dict[str, Any] | None = None,
    iterations: list[int] | None = None,
    **fit: Any,
) -> Scene:
    """A regression on the data that `feed` makes; `epochs` are the batches it must see, and
    `iterations` what the optimizer counts where that is not the steps.
    """
    line = Line.of()
    model = regression(line, **(QUICKLY if compiled is None else compiled))
    options = {
        "epochs": len(epochs) + fit.get("initial_epoch", 0),
        "shuffle": False,
        "verbose": 0,
        **fit,
    }

    def train(callbacks: list[Any]) -> Any:
        return model.fit(**feed(), **options, callbacks=callbacks).history

    def evidence() -> list[Evidence]:
        found = trained(line, epochs)
        if iterations is not None:
            found["optimizer/iterations"] = np.array(iterations)
        return [Evidence(found)]

    return Scene([model], train, evidence)


def tf_data(*, known: bool, repeated: bool = False) -> dict[str, Any]:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(weighted_rows()).batch(4)
    if not known:
        data = data.filter(lambda *_: True)
        assert data.cardinality() == tf.data.UNKNOWN_CARDINALITY
    return {"x": data.repeat() if repeated else data}


def endless() -> Iterator[Any]:
    while True:
        yield from BATCHES


def once() -> Iterator[Any]:
    yield from BATCHES


class Batches(keras.utils.PyDataset):
    """The batches of this file."""

    def __len__(self) -> int:
        return len(BATCHES)

    def __getitem__(self, index: int) -> Any:
        return BATCHES[index]


def loader(workers: int = 0) -> dict[str, Any]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    rows = TensorDataset(*map(torch.from_numpy, weighted_rows()))
    return {"x": DataLoader(rows, batch_size=4, num_workers=workers)}


def arrays() -> dict[str, Any]:
    x, y, weight = weighted_rows()
    return {"x": x, "y": y, "sample_weight": weight, "batch_size": 4}


def shuffled_arrays() -> Scene:
    """Keras' own order is drawn anew from the same seed, with and without the callback."""
    line = Line.of()
    model = regression(line)
    x, y, weight = weighted_rows()

    def train(callbacks: list[Any]) -> Any:
        history = model.fit(
            x,
            y,
            sample_weight=weight,
            batch_size=5,
            epochs=3,
            verbose=0,
            callbacks=callbacks,
        )
        return history.history

    sizes = {"batch/size": [5.0] * 6}
    return Scene([model], train, lambda: [Evidence(sizes)])


GROUP = "data"
TWICE = [BATCHES, BATCHES]
B = BATCHES
ENDS = "Your input ran out of data"
GRAPHS = ("tensorflow", "jax")


CELLS = [
    Cell(GROUP, "arrays, shuffled", shuffled_arrays),
    Cell(GROUP, "arrays, initial_epoch", partial(fed, arrays, TWICE, initial_epoch=3)),
    Cell(GROUP, "tf.data of known length", partial(fed, partial(tf_data, known=True), TWICE)),
    Cell(
        GROUP,
        "tf.data of unknown length",
        # In TensorFlow's graph the optimizer counts the look that finds the data at its end.
        partial(fed, partial(tf_data, known=False), TWICE, iterations=[1, 2, 3, 5, 6, 7]),
        ("tensorflow",),
        warns=ENDS,
    ),
    Cell(
        GROUP,
        "tf.data of unknown length, outside a graph",
        partial(fed, partial(tf_data, known=False), TWICE),
        ("jax", "torch"),
        warns=ENDS,
    ),
    Cell(
        GROUP,
        "tf.data of unknown length, 2 steps an execution",
        partial(fed, partial(tf_data, known=False), TWICE, compiled={"steps_per_execution": 2}),
        GRAPHS,
        warns=ENDS,
    ),
    Cell(
        GROUP,
        "tf.data without end, steps_per_epoch",
        partial(
            fed,
            partial(tf_data, known=True, repeated=True),
            [[B[0], B[1]], [B[2], B[0]], [B[1], B[2]]],
            steps_per_epoch=2,
        ),
        ("tensorflow",),
    ),
    Cell(
        GROUP,
        "generator, steps_per_epoch",
        partial(fed, lambda: {"x": endless()}, [[B[0], B[1]], [B[2], B[0]]], steps_per_epoch=2),
    ),
    Cell(GROUP, "generator that ends", partial(fed, lambda: {"x": once()}, [BATCHES]), warns=ENDS),
    Cell(
        GROUP,
        "PyDataset",
        partial(fed, lambda: {"x": Batches()}, TWICE),
        ("tensorflow",),
    ),
    Cell(
        GROUP,
        "PyDataset, two threads",
        partial(fed, lambda: {"x": Batches(workers=2)}, TWICE),
        ("tensorflow",),
    ),
    Cell(
        GROUP,
        "PyDataset, two threads, after a look at the first batch",
        # There Keras looks at a batch to build the model, and the queue goes on behind it.
        partial(fed, lambda: {"x": Batches(workers=2)}, [[B[1], B[2], B[0]]] * 2),
        ("jax", "torch"),
    ),
    Cell(
        GROUP,
        "PyDataset, two processes",
        partial(
            fed,
            lambda: {"x": Batches(workers=2, use_multiprocessing=True)},
            TWICE,
        ),
        ("tensorflow",),
    ),
    Cell(GROUP, "DataLoader", partial(fed, loader, TWICE)),
    Cell(GROUP, "DataLoader, a process", partial(fed, partial(loader, 1), TWICE), ("torch",)),
]
