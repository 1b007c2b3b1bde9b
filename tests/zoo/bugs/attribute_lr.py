"""`optimizer.lr = 0` is accepted, and training goes on as before."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Stopping(keras.callbacks.Callback):
    """Stands still from the second epoch on."""

    attribute = "learning_rate"

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            setattr(self.model.optimizer, self.attribute, 0.0)


class OldName(Stopping):
    attribute = "lr"


def _fit(callback):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return watched_fit(model, *points(), epochs=3, batch_size=8, callbacks=[callback])


def faulty():
    return _fit(OldName())


def healthy():
    return _fit(Stopping())


CASE = Case(
    bugs=("L2",),
    title="optimizer.lr = 0 changes nothing",
    rule="lr-effective-mismatch",
    subject="optimizer.lr",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
