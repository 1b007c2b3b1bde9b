"""CategoryEncoding returns float32 under a float16 policy, and says float16."""

import keras
import numpy as np
from tests.watched import watched_fit
from tests.zoo.case import Case


def _fit(**dtype):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        encoding = keras.layers.CategoryEncoding(5, "one_hot", **dtype)
        head = keras.layers.Dense(1, dtype="float32")
        model = keras.Sequential([keras.Input((1,), dtype="int32"), encoding, head])
        model.compile("sgd", "mse")
        kinds = np.arange(64)[:, None] % 5
        return watched_fit(model, kinds, kinds.astype("float32"), epochs=2, batch_size=8)
    finally:
        keras.config.set_dtype_policy("float32")


def faulty():
    return _fit()


def healthy():
    return _fit(dtype="float32")


CASE = Case(
    bugs=("L10",),
    title="A layer of Keras computes in float32 under a float16 policy",
    rule="dtype-policy-mismatch",
    subject="category_encoding*",
    in_words=True,
    advice=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="More digits than declared harm nobody's numbers, so it is advice.",
    live=True,
)
