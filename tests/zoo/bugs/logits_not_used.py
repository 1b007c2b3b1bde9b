"""A layer between softmax and loss hides the logits: the loss is cut off."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import classes


def _fit(*behind):
    x, labels = classes()
    labels[:4] = (labels[:4] + 1) % 3  # a few are labelled wrongly
    scores = keras.layers.Dense(3, kernel_initializer=keras.initializers.Orthogonal(60.0))
    softmax = keras.layers.Softmax(name="probabilities")
    model = keras.Sequential([keras.Input((4,)), scores, softmax, *behind])
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return watched_fit(model, x, labels, epochs=2, batch_size=16)


def faulty():
    return _fit(keras.layers.Reshape((3,)))


def healthy():
    return _fit()


CASE = Case(
    bugs=("57",),
    title="The crossentropy goes through probabilities and is cut off",
    rule="loss-precision-lost",
    subject="loss",
    faulty=faulty,
    healthy=healthy,
    not_reachable="Models whose logits nothing shows: custom layers with a softmax inside.",
)
