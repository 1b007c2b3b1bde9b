"""A callback announces the same reduction for ever: it compares a float with a stored float32."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Reducing(keras.callbacks.Callback):
    least = 0.001

    def on_epoch_end(self, epoch, logs=None):
        old = float(self.model.optimizer.learning_rate)
        if old > self.least:
            new = max(old * 0.1, self.least)
            self.model.optimizer.learning_rate = new
            print(f"Epoch {epoch + 1}: reducing learning rate to {new}.")


class Tolerant(Reducing):
    least = 0.00100001


def _fit(callback):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return watched_fit(model, *points(), epochs=4, batch_size=8, callbacks=[callback])


def faulty():
    return _fit(Reducing())


def healthy():
    return _fit(Tolerant())


CASE = Case(
    bugs=("62",),
    title="A reduction of the learning rate is announced, and nothing changes",
    rule="announced-action-mismatch",
    subject="Reducing: the learning rate",
    faulty=faulty,
    healthy=healthy,
)
