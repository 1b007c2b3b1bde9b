"""A mask made from the predictions: only the most confident position counts."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


class MostConfident(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, tags, mask=None):
        return 1.0 * tags

    def compute_mask(self, tags, mask=None):
        confidence = ops.max(tags, axis=-1)
        return ops.equal(confidence, ops.max(confidence, axis=-1, keepdims=True))


class AllWords(MostConfident):
    def compute_mask(self, tags, mask=None):
        return mask


def _fit(layer):
    ids = keras.Input((8,), dtype="int32")
    words = keras.layers.Embedding(20, 8, mask_zero=True)(ids)
    tags = layer(keras.layers.Dense(4, activation="softmax")(words))
    model = keras.Model(ids, tags)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, *sentences(), epochs=4, batch_size=4)


def faulty():
    return _fit(MostConfident())


def healthy():
    return _fit(AllWords())


CASE = Case(
    bugs=("F2",),
    title="A mask made from the predictions hides every error",
    rule="mask-coverage-mismatch",
    subject="most_confident",
    faulty=faulty,
    healthy=healthy,
)
