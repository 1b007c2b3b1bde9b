"""A Dense and an Embedding called inside a Lambda belong to nobody and never learn."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(hide):
    ids, tags = sentences()
    words, hidden = keras.layers.Embedding(20, 8), keras.layers.Dense(8)
    words.build((None, 8))
    hidden.build((None, 8, 8))
    inputs = keras.Input((8,), dtype="int32")
    if hide:
        x = keras.layers.Lambda(lambda i: hidden(words(i)), output_shape=(8, 8))(inputs)
    else:
        x = hidden(words(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return watched_fit(model, ids, tags, epochs=2, batch_size=8)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("47", "64"),
    title="Layers inside a Lambda are not part of the model",
    rule="untracked-weights",
    subject="lambda: *",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
