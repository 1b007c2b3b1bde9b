"""A `train_step` of one's own that forgets the sample weights."""

import keras
import numpy as np
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Forgetful(keras.Sequential):
    forgets = True

    def train_step(self, data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        weight = None if self.forgets else weight
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs, weight)
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return self.compute_metrics(x, y, outputs, sample_weight=weight)


class Mindful(Forgetful):
    forgets = False


def _fit(kind):
    x, y = points()
    model = kind([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    weight = np.linspace(0.0, 1.0, len(x), dtype="float32")
    return watched_fit(model, x, y, sample_weight=weight, epochs=2, batch_size=8)


def faulty():
    return _fit(Forgetful)


def healthy():
    return _fit(Mindful)


CASE = Case(
    bugs=("81",),
    title="Sample weights do not reach the loss",
    rule="sample-weight-effect",
    subject="sample weights",
    faulty=faulty,
    healthy=healthy,
)
