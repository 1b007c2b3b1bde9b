"""Under the policy bfloat16 Adam never moves a weight: its 0.999 is rounded to 1."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


def _fit(policy):
    keras.config.set_dtype_policy(policy)
    try:
        hidden = keras.layers.Dense(8, activation="relu")
        model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.05), "mse")
        return watched_fit(model, *points(), epochs=3, batch_size=4)
    finally:
        keras.config.set_dtype_policy("float32")


def faulty():
    return _fit("bfloat16")


def healthy():
    return _fit("mixed_bfloat16")


CASE = Case(
    bugs=("L9",),
    title="Adam does not train weights in bfloat16",
    rule="lr-effective-mismatch",
    subject="effective learning rate",
    faulty=faulty,
    healthy=healthy,
    live=True,
)
