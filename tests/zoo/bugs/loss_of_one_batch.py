"""A `train_step` that returns the loss of its batch beside running metrics."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Raw(keras.Sequential):
    raw = True

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs)
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        shown = self.compute_metrics(x, y, outputs)
        return {**shown, "loss": loss} if self.raw else shown


class Running(Raw):
    raw = False


def _fit(kind):
    model = kind([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return watched_fit(model, *points(), epochs=3, batch_size=8)


def faulty():
    return _fit(Raw)


def healthy():
    return _fit(Running)


CASE = Case(
    bugs=("45",),
    title="The loss shown is of the last batch, the metrics are of the epoch",
    rule="epoch-aggregation-mismatch",
    subject="loss",
    faulty=faulty,
    healthy=healthy,
)
