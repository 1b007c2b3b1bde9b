"""An optimizer given by name gets another default than its class."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Adagrad(keras.optimizers.Adagrad):
    @classmethod
    def from_config(cls, config):
        return keras.optimizers.Adagrad(**{"initial_accumulator_value": 0.0, **config})


def _fit(spelling):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    registered = keras.saving.get_custom_objects()
    registered["adagrad"] = Adagrad
    try:
        model.compile(spelling, "mse")
        return watched_fit(model, *points(), epochs=2, batch_size=8)
    finally:
        del registered["adagrad"]


def faulty():
    return _fit("adagrad")


def healthy():
    return _fit(keras.optimizers.Adagrad())


CASE = Case(
    bugs=("39",),
    title="'adagrad' and Adagrad() begin with other accumulators",
    rule="declared-config-drift",
    faulty=faulty,
    healthy=healthy,
    subject="optimizer Adagrad: initial_accumulator_value",
)
