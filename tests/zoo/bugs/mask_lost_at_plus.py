"""`x + y` after a masked embedding drops the mask, without a word."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(add):
    ids = keras.Input((8,), dtype="int32")
    words = keras.layers.Embedding(20, 8, mask_zero=True)(ids)
    places = keras.layers.Dense(8)(words)
    tags = keras.layers.Dense(4, activation="softmax")(add(words, places))
    model = keras.Model(ids, tags)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, *sentences(), epochs=3, batch_size=8)


def faulty():
    return _fit(lambda x, y: x + y)


def healthy():
    return _fit(lambda x, y: keras.layers.Add()([x, y]))


CASE = Case(
    bugs=("10", "F1"),
    title="x + y instead of Add()([x, y]) destroys the mask",
    rule="mask-coverage-mismatch",
    subject="add",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
