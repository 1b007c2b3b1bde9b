"""A callable learning rate is read once, when the step is traced."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _model(rate):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def faulty():
    now = {"rate": 0.1}
    model = _model(lambda: now["rate"])
    later = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: now.update(rate=0.1 if epoch == 0 else 0.0)
    )
    return watched_fit(model, *points(), epochs=3, batch_size=8, callbacks=[later])


def healthy():
    rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 0.0)
    return watched_fit(_model(0.1), *points(), epochs=3, batch_size=8, callbacks=[rate])


CASE = Case(
    bugs=("17",),
    title="The step keeps the learning rate it was traced with",
    rule="lr-effective-mismatch",
    subject="learning_rate",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
