"""A model that hands `training=False` to its Dropout, in training too."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Net(keras.Model):
    def __init__(self, forgets):
        super().__init__()
        self.forgets = forgets
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.dropout = keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(1)

    def call(self, x, training=False):
        inner = False if self.forgets else training
        return self.head(self.dropout(self.hidden(x), training=inner))


def _fit(forgets):
    model = Net(forgets)
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("24", "33"),
    title="Dropout is off in training",
    rule="mode-flag-lost",
    subject="*dropout*",
    faulty=faulty,
    healthy=healthy,
)
