"""A layer whose `get_config` leaves out `trainable`: frozen when saved, trainable when loaded."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


@keras.saving.register_keras_serializable("zoo")
class Words(keras.layers.Embedding):
    pass


@keras.saving.register_keras_serializable("zoo")
class ThawingWords(Words):
    def get_config(self):
        config = super().get_config()
        del config["trainable"]
        return config


def _fit(kind):
    ids, tags = sentences()
    layers = [keras.Input((8,), dtype="int32"), kind(20, 8, name="words", trainable=False)]
    model = keras.Sequential([*layers, keras.layers.Dense(4, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return watched_fit(model, ids, tags, epochs=2, batch_size=8)


def faulty():
    return _fit(ThawingWords)


def healthy():
    return _fit(Words)


CASE = Case(
    bugs=("40",),
    title="A frozen embedding is trainable after reload",
    rule="roundtrip-structure",
    subject="trainable weights",
    faulty=faulty,
    healthy=healthy,
)
