"""Attention takes the mask off the tensor it is given: the residual connection has none."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(given):
    ids = keras.Input((8,), dtype="int32")
    words = keras.layers.Embedding(20, 8, mask_zero=True, name="words")(ids)
    seen = given(words)
    attended = keras.layers.MultiHeadAttention(1, 8, name="attention")(seen, seen)
    both = keras.layers.Add(name="residual")([words, attended])
    tags = keras.layers.Dense(4, activation="softmax")(both)
    model = keras.Model(ids, tags)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, *sentences(), epochs=3, batch_size=8)


def faulty():
    return _fit(lambda words: words)


def healthy():
    return _fit(keras.layers.LayerNormalization())


CASE = Case(
    bugs=("L1",),
    title="Add()([x, attention(x, x)]) has no mask",
    rule="mask-coverage-mismatch",
    subject="residual",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
