"""A metric whose `reset_state` does nothing leaks one epoch into the next."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Leaking(keras.metrics.MeanSquaredError):
    def reset_state(self):
        pass


class Resetting(keras.metrics.MeanSquaredError):
    def reset_state(self):
        super().reset_state()


def _fit(metric):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[metric])
    return watched_fit(model, *points(), epochs=3, batch_size=8)


def faulty():
    return _fit(Leaking(name="error"))


def healthy():
    return _fit(Resetting(name="error"))


CASE = Case(
    bugs=("16",),
    title="A metric is not reset between epochs",
    rule="metric-state-carryover",
    subject="error",
    faulty=faulty,
    healthy=healthy,
)
