"""A layer whose `get_config` reports another activation than it has."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


@keras.saving.register_keras_serializable("zoo")
class Honest(keras.layers.Dense):
    pass


@keras.saving.register_keras_serializable("zoo")
class Forgetful(Honest):
    def get_config(self):
        return {**super().get_config(), "activation": "linear"}


def _fit(kind):
    hidden = kind(8, activation="relu", name="hidden")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(Forgetful)


def healthy():
    return _fit(Honest)


CASE = Case(
    bugs=("54",),
    title="A rebuilt model has another activation and predicts otherwise",
    rule="roundtrip-behaviour",
    subject="output output_0",
    faulty=faulty,
    healthy=healthy,
)
