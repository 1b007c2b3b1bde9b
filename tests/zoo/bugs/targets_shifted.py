"""Next words as targets under the mask of the inputs: credit for learning that PAD follows END."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


def _fit(ids, targets):
    words = keras.layers.Embedding(20, 8, mask_zero=True)
    model = keras.Sequential(
        [keras.Input((8,), dtype="int32"), words, keras.layers.Dense(20, activation="softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, ids, targets, epochs=3, batch_size=8)


def _next(ids):
    return np.concatenate([ids[:, 1:], np.zeros((len(ids), 1), ids.dtype)], axis=1)


def faulty():
    ids, _ = sentences()
    return _fit(ids, _next(ids))


def healthy():
    """The last word is no input: nothing follows it."""
    ids, _ = sentences()
    targets = _next(ids)
    return _fit(np.where(targets == 0, 0, ids), targets)


CASE = Case(
    bugs=("F3",),
    title="Targets are shifted by one against the inputs, the mask is not",
    rule="mask-target-misaligned",
    subject="targets",
    faulty=faulty,
    healthy=healthy,
)
