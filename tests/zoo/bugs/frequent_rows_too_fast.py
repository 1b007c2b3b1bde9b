"""Adam moves the rows of frequent ids several times too far on TensorFlow."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


class AddsUpRows(keras.optimizers.Adam):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(tf.convert_to_tensor(gradient), variable, learning_rate)


def _fit(optimizer):
    ids, _ = sentences()
    words = keras.layers.Embedding(20, 8)
    average = keras.layers.GlobalAveragePooling1D()
    ends = [words, average, keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,), dtype="int32"), *ends])
    model.compile(optimizer, "mse")
    return watched_fit(model, ids, ids.mean(axis=1) / 10, epochs=2, batch_size=16)


def faulty():
    return _fit(keras.optimizers.Adam(0.01))


def healthy():
    return _fit(AddsUpRows(0.01))


CASE = Case(
    bugs=("L6",),
    title="Gradients of an embedding are squared before the uses of a row are added up",
    rule="sparse-update-mismatch",
    subject="*embeddings",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Every embedding trained by Adam on TensorFlow has it, so it is advice.",
    live=True,
)
