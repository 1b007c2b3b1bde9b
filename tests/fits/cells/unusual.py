"""Inputs that are no plain arrays of numbers, as TensorFlow has them: strings, sparse, ragged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from tests.fits.cells.by_hand import Line, cut, rows, trained
from tests.fits.cells.cell import Cell, Evidence, Scene
from tests.fits.cells.running import compile_as
from tests.fits.cells.steps import fitted

WORDS = np.array(["red", "green", "mauve", "green", "red", "red", "blue", "green", "blue", "red"])
KNOWN = ["red", "green", "blue"]


def fed_by_tensorflow(line: Line, model: keras.Model, inputs: Any, x: Any, y: Any) -> Scene:
    """`inputs` as TensorFlow has them, and `x` as they reach the line."""
    import tensorflow as tf

    model.get_layer("line").set_weights(line.weights())
    compile_as(line, model)
    data = tf.data.Dataset.from_tensor_slices((inputs, y)).batch(4)

    def train(callbacks: list[Any]) -> Any:
        return model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history

    def evidence() -> list[Evidence]:
        batches = [(bx, by, None) for bx, by in cut(4, x, y)]
        return [Evidence(trained(line, [batches] * 2), batches=(3, 3))]

    return Scene([model], train, evidence)


def strings(lookup: Callable[[], Any]) -> Scene:
    """A row of ones and zeros for each word; the first place is that of words nobody knows."""
    line, y = Line.of(4), rows(10, 1, seed=6)
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, layers.Dense(1, name="line")(lookup()(inputs)))
    codes = np.array([KNOWN.index(word) + 1 if word in KNOWN else 0 for word in WORDS])
    return fed_by_tensorflow(line, model, WORDS, np.eye(4, dtype="float32")[codes], y)


def looked_up() -> Any:
    return layers.StringLookup(vocabulary=KNOWN, output_mode="one_hot")


def as_text() -> Any:
    return layers.TextVectorization(vocabulary=KNOWN, output_mode="multi_hot")


HALF = np.where(rows() > 0, rows(), 0)


def of_sparse_rows() -> keras.Model:
    inputs = keras.Input((3,), sparse=True)
    return keras.Model(inputs, layers.Dense(1, name="line")(inputs))


def sparse() -> Scene:
    import tensorflow as tf

    line, y = Line.of(), rows(10, 1, seed=6)
    return fed_by_tensorflow(line, of_sparse_rows(), tf.sparse.from_dense(HALF), HALF, y)


def of_scipy() -> Scene:
    """As arrays, which Keras cuts into batches."""
    from scipy.sparse import csr_matrix

    line, y = Line.of(), rows(10, 1, seed=6)
    model = of_sparse_rows()
    model.get_layer("line").set_weights(line.weights())
    compile_as(line, model)

    def evidence() -> Evidence:
        return Evidence(trained(line, [[(bx, by, None) for bx, by in cut(4, HALF, y)]] * 2))

    return fitted(model, evidence, csr_matrix(HALF), y)


class OfSums(keras.Model):
    """Takes lists of points, each of its own length, and looks at their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.line = layers.Dense(1, name="line")
        self.line.build((None, 3))

    def call(self, points: Any) -> Any:
        import tensorflow as tf

        return self.line(tf.reduce_sum(points, axis=1))


def ragged() -> Scene:
    import tensorflow as tf

    line, y = Line.of(rate=0.01), rows(10, 1, seed=6)
    lengths = [1, 3, 2, 1, 1, 4, 2, 1, 2, 3]
    points = rows(sum(lengths))
    starts = np.cumsum([0, *lengths[:-1]])
    sums = np.add.reduceat(points, starts, axis=0)
    inputs = tf.RaggedTensor.from_row_lengths(points, lengths)
    return fed_by_tensorflow(line, OfSums(), inputs, sums, y)


GROUP = "unusual inputs"
TENSORFLOW = ("tensorflow",)

CELLS = [
    Cell(GROUP, "strings, StringLookup in the model", lambda: strings(looked_up), TENSORFLOW),
    Cell(GROUP, "strings, TextVectorization in the model", lambda: strings(as_text), TENSORFLOW),
    Cell(GROUP, "sparse", sparse, TENSORFLOW),
    Cell(GROUP, "sparse rows of SciPy", of_scipy, TENSORFLOW),
    Cell(GROUP, "ragged", ragged, TENSORFLOW),
]
