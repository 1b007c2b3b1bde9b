"""The masked loss of an epoch depends on how its rows are cut into batches."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(lengths):
    rows, width = len(lengths), 8
    ids, tags = sentences(rows, width)
    ids = np.where(np.arange(width) < np.asarray(lengths)[:, None], np.maximum(ids, 1), 0)
    words = keras.layers.Embedding(20, 8, mask_zero=True)
    model = keras.Sequential([keras.Input((width,), dtype="int32"), words, keras.layers.Dense(4)])
    # Short rows are hard: their tags are seldom.
    tags = np.where(np.asarray(lengths)[:, None] < 3, 3, tags % 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return watched_fit(model, ids, tags, epochs=4, batch_size=8, shuffle=False)


def faulty():
    return _fit([1] * 8 + [8] * 24)


def healthy():
    return _fit([8] * 32)


CASE = Case(
    bugs=("L4",),
    title="A masked loss is a mean of means over batches",
    rule="epoch-aggregation-mismatch",
    subject="masked loss",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="It is by design in Keras 3, so it is advice.",
    live=True,
)
