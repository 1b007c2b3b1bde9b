"""`clone_model` forgets the matrix that an Embedding was given."""

import tempfile
from pathlib import Path

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences

from trainsanity import Expect


def _fit(take):
    ids, tags = sentences()
    matrix = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
    words = keras.layers.Embedding(20, 8, weights=[matrix], name="words")
    head = keras.layers.Dense(4, activation="softmax")
    given = keras.Sequential([keras.Input((8,), dtype="int32"), words, head])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.weights.h5"
        given.save_weights(path)
        model = take(given)
        model.compile("sgd", "sparse_categorical_crossentropy")
        expect = Expect(initial_weights=path)
        return watched_fit(model, ids, tags, epochs=2, batch_size=8, options={"expect": expect})


def faulty():
    return _fit(keras.models.clone_model)


def healthy():
    return _fit(lambda model: model)


CASE = Case(
    bugs=("42",),
    title="Training does not begin with the weights that were given",
    rule="declared-config-drift",
    subject="weight */words/embeddings: initial value",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="The user has to say with Expect(initial_weights=...) what was meant.",
    live=True,
)
