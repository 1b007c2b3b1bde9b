"""Two outputs, and no loss for the head that matters."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(losses):
    x, y = points()
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    outputs = [keras.layers.Dense(1, name=name)(hidden) for name in ("side", "real")]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss=losses)
    return watched_fit(model, x, [y, y], epochs=3, batch_size=4)


def faulty():
    return _fit(["mse", None])


def healthy():
    return _fit(["mse", "mse"])


CASE = Case(
    bugs=("34",),
    title="A head gets no loss and never learns",
    rule="dead-weights",
    subject="*real*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    live=True,
)
