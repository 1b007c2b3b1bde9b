"""A head whose configuration forgets its name: the loaded model has another output."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


@keras.saving.register_keras_serializable("zoo")
class Nameless(keras.layers.Dense):
    def get_config(self):
        config = super().get_config()
        del config["name"]
        return config


def _fit(kind):
    inputs = keras.Input((4,))
    outputs = kind(1, name="score")(keras.layers.Dense(4, "relu")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(Nameless)


def healthy():
    return _fit(keras.layers.Dense)


CASE = Case(
    bugs=("61",),
    title="An output has another name in the saved model",
    rule="roundtrip-structure",
    subject="output names",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Graphs of TensorFlow 1, whose nodes had names, are gone.",
)
