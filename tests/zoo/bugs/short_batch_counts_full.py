"""A plain mean over batches: the short last batch weighs as much as a full one."""

import keras
import tensorflow as tf
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class OwnMean(keras.Sequential):
    by_rows = False

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs)
        rows = tf.shape(x)[0] if self.by_rows else None
        self._loss_tracker.update_state(loss, sample_weight=rows)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return self.compute_metrics(x, y, outputs)


class ByRows(OwnMean):
    by_rows = True


def _fit(kind):
    x, y = points(rows=50)
    y[48:] += 20.0
    model = kind([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, x, y, epochs=3, batch_size=8, shuffle=False)


def faulty():
    return _fit(OwnMean)


def healthy():
    return _fit(ByRows)


CASE = Case(
    bugs=("18",),
    title="The loss of an epoch is a plain mean over batches of different size",
    rule="epoch-aggregation-mismatch",
    subject="loss",
    faulty=faulty,
    healthy=healthy,
)
