"""An optimizer given by name gets another default than its class."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Adagrad(keras.optimizers.Adagrad):
    @classmethod
    def from_config(cls, config):
        return keras.optimizers.Adagrad(**{"initial_accumulator_value": 0.0, **config})


def _fit(objects):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with keras.saving.custom_object_scope(objects):
        model.compile("adagrad", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit({"adagrad": Adagrad})


def healthy():
    return _fit({})


CASE = Case(
    bugs=("39",),
    title="'adagrad' and Adagrad() begin with other accumulators",
    rule="declared-config-drift",
    faulty=faulty,
    healthy=healthy,
    caught=False,
    not_reachable="An optimizer given by name is not yet compared with its class.",
)
