"""Metrics show each other's values."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Permuted(keras.Sequential):
    def get_metrics_result(self):
        shown = super().get_metrics_result()
        shown["mae"], shown["mse"] = shown["mse"], shown["mae"]
        return shown


def _fit(kind):
    model = kind([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", "mse"])
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(Permuted)


def healthy():
    return _fit(keras.Sequential)


CASE = Case(
    bugs=("3", "72"),
    title="Named metrics swap their values",
    rule="log-key-integrity",
    subject="m[as]e",
    faulty=faulty,
    healthy=healthy,
)
