"""A stateful bidirectional layer whose `reset_state` does nothing."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case


class Stale(keras.layers.Bidirectional):
    def reset_state(self):
        pass


def _fit(kind):
    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    both = kind(keras.layers.SimpleRNN(4, stateful=True), name="both")
    model = keras.Sequential([keras.Input((5, 3), batch_size=8), both, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    reset = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: both.reset_state())
    return watched_fit(model, x, x[:, 0, :1], epochs=3, batch_size=8, callbacks=[reset])


def faulty():
    return _fit(Stale)


def healthy():
    return _fit(keras.layers.Bidirectional)


CASE = Case(
    bugs=("66",),
    title="Recurrent states survive a reset",
    rule="state-reset-missing",
    faulty=faulty,
    healthy=healthy,
    subject="both",
)
