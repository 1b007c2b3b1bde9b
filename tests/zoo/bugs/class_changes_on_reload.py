"""A subclass whose `from_config` builds its parent: another class comes back."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


@keras.saving.register_keras_serializable("zoo")
class Parent(keras.layers.Dense):
    pass


@keras.saving.register_keras_serializable("zoo")
class Child(Parent):
    @classmethod
    def from_config(cls, config):
        return Parent(**config)


def _fit(kind):
    model = keras.Sequential([keras.Input((4,)), kind(1, name="head")])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(Child)


def healthy():
    return _fit(Parent)


CASE = Case(
    bugs=("37",),
    title="A layer comes back as another class",
    rule="roundtrip-structure",
    faulty=faulty,
    healthy=healthy,
)
