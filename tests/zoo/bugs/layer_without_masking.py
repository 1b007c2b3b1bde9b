"""A layer of one's own that forgets `supports_masking`: the mask ends there."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


class Scale(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x


def _fit(layer):
    ids = keras.Input((8,), dtype="int32")
    words = layer(keras.layers.Embedding(20, 8, mask_zero=True)(ids))
    model = keras.Model(ids, keras.layers.Dense(4, activation="softmax")(words))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, *sentences(), epochs=3, batch_size=8)


def faulty():
    return _fit(Scale())


def healthy():
    layer = Scale()
    layer.supports_masking = True
    return _fit(layer)


CASE = Case(
    bugs=("F4",),
    title="A layer that does not support masks swallows the mask",
    rule="mask-coverage-mismatch",
    subject="scale",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
