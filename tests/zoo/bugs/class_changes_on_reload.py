"""Two classes registered under one name: the one registered last comes back."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Old:
    @keras.saving.register_keras_serializable("zoo", "Head")
    class Head(keras.layers.Dense):
        pass


class New:
    @keras.saving.register_keras_serializable("zoo", "Head")
    class Head(keras.layers.Dense):
        pass


def _fit(kind):
    model = keras.Sequential([keras.Input((4,)), kind(1, name="head")])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(Old.Head)


def healthy():
    return _fit(New.Head)


CASE = Case(
    bugs=("37",),
    title="A layer comes back as another class",
    rule="roundtrip-structure",
    subject="head",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    live=True,
)
