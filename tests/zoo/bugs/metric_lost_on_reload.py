"""A metric that forgets an argument when saved: the same predictions, another accuracy."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


@keras.saving.register_keras_serializable("zoo")
class OfLogits(keras.metrics.BinaryAccuracy):
    pass


@keras.saving.register_keras_serializable("zoo")
class ForgetfulOfLogits(OfLogits):
    def get_config(self):
        return {**super().get_config(), "threshold": 0.5}


def _fit(kind):
    x, y = points()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[kind(name="accuracy", threshold=0.0)])
    return watched_fit(model, x, (y > 0).astype("float32"), epochs=2, batch_size=16)


def faulty():
    return _fit(ForgetfulOfLogits)


def healthy():
    return _fit(OfLogits)


CASE = Case(
    bugs=("4", "5", "13", "27", "70"),
    title="A reloaded model predicts the same and scores another accuracy",
    rule="roundtrip-behaviour",
    subject="*accuracy*",
    faulty=faulty,
    healthy=healthy,
)
