"""The gradient of an embedding is clipped before the uses of a row are added up."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


class AddsUpFirst(keras.optimizers.SGD):
    def _clip_gradients(self, grads):
        return super()._clip_gradients([tf.convert_to_tensor(grad) for grad in grads])


def _fit(kind):
    ids, _ = sentences()
    table = keras.layers.Embedding(20, 4)
    layers = [table, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,), dtype="int32"), *layers])
    model.compile(kind(0.1, global_clipnorm=0.05), "mse")
    return watched_fit(model, ids, ids.mean(axis=1), epochs=2, batch_size=16)


def faulty():
    return _fit(keras.optimizers.SGD)


def healthy():
    return _fit(AddsUpFirst)


CASE = Case(
    bugs=("L8",),
    title="Clipping bounds the parts of a gradient, not the gradient",
    rule="clip-bound-exceeded",
    subject="optimizer.global_clipnorm",
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Every embedding that is clipped on TensorFlow has it, so it is advice.",
    live=True,
)
