"""An activation that casts to float32 under a float16 policy."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Threshold(keras.layers.Layer):
    def __init__(self, own_dtype):
        super().__init__(name="threshold")
        self.own_dtype = own_dtype

    def call(self, x):
        kind = "float32" if self.own_dtype else x.dtype
        return ops.cast(ops.relu(x), kind)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.compute_dtype)


def _fit(own_dtype):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        head = keras.layers.Dense(1, dtype="float32")
        layers = [keras.Input((4,)), keras.layers.Dense(4), Threshold(own_dtype), head]
        model = keras.Sequential(layers)
        model.compile("sgd", "mse")
        return watched_fit(model, *points(), epochs=2, batch_size=8)
    finally:
        keras.config.set_dtype_policy("float32")


def faulty():
    return _fit(True)


def healthy():
    return _fit(False)


CASE = Case(
    bugs=("76",),
    title="A layer computes in float32 under a float16 policy",
    rule="dtype-policy-mismatch",
    subject="*threshold*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
)
