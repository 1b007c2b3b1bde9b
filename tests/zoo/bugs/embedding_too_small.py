"""Ids beyond the table: XLA clamps them to its last row instead of failing."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(rows):
    ids, tags = sentences()
    words = keras.layers.Embedding(rows, 8, name="words")
    model = keras.Sequential(
        [keras.Input((8,), dtype="int32"), words, keras.layers.Dense(4, activation="softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
    return watched_fit(model, ids, tags, epochs=2, batch_size=8)


def faulty():
    return _fit(12)


def healthy():
    return _fit(20)


CASE = Case(
    bugs=("F5",),
    title="An embedding with too few rows reads the wrong ones under jit_compile",
    rule="index-range",
    subject="words*",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
