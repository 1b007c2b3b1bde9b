"""Graphs and clouds of points."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


class GraphAttention(layers.Layer):
    """Each node looks at its neighbours, given as a matrix of 0 and 1."""

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shapes):
        self.kernel = self.add_weight(shape=(shapes[0][-1], self.width), name="kernel")
        self.toward = self.add_weight(shape=(self.width, 1), name="toward")
        self.to = self.add_weight(shape=(self.width, 1), name="to")

    def call(self, inputs):
        nodes, edges = inputs
        nodes = ops.matmul(nodes, self.kernel)
        scores = ops.matmul(nodes, self.toward) + ops.swapaxes(ops.matmul(nodes, self.to), 1, 2)
        scores = ops.where(edges > 0, ops.leaky_relu(scores), -1e9)
        return ops.matmul(ops.softmax(scores, axis=-1), nodes)

    def get_config(self):
        return super().get_config() | {"width": self.width}


def graph_attention() -> SpooledRun:
    """A class for each node of small random graphs."""
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(48, 7, 5)).astype("float32")
    edges = ((rng.random(size=(48, 7, 7)) < 0.4) | np.eye(7, dtype=bool)).astype("float32")
    labels = (np.einsum("bij,bjk->bik", edges, nodes)[..., 0] > 0).astype("int32")
    given = [keras.Input((7, 5)), keras.Input((7, 7))]
    hidden = layers.ReLU()(GraphAttention(8)(given))
    outputs = layers.Dense(2, activation="softmax")(GraphAttention(8)([hidden, given[1]]))
    model = keras.Model(given, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, [nodes, edges], labels, batch_size=8, epochs=2)


def point_net() -> SpooledRun:
    """The same small network for each point, and the largest over all of them."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(64, 20, 3)).astype("float32")
    kinds = rng.integers(0, 2, size=64)
    points[kinds == 1, :, 2] *= 0.1
    inputs = keras.Input((20, 3))
    features = inputs
    for width in (8, 12):
        features = layers.Conv1D(width, 1)(features)
        features = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(features))
    features = layers.Dropout(0.3)(layers.GlobalMaxPooling1D()(features))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(features))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, points, kinds, batch_size=16, epochs=2)


WORKFLOWS = [graph_attention, point_net]
