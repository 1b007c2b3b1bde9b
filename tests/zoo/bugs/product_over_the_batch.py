"""A tensordot where a product for each sample was meant: the batch axis appears twice."""

import keras
import numpy as np
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case


class Product(keras.layers.Layer):
    def __init__(self, by_sample):
        super().__init__(name="product")
        self.by_sample = by_sample

    def call(self, x):
        if self.by_sample:
            return ops.einsum("bik,bjk->bij", x, x)
        return ops.sum(ops.tensordot(x, x, axes=[[2], [2]]), axis=2)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1], shape[1])


def _fit(by_sample):
    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    pool = keras.layers.GlobalAveragePooling1D()
    model = keras.Sequential([keras.Input((5, 3)), Product(by_sample), pool, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, x, x[:, 0, :1], epochs=2, batch_size=8)


def faulty():
    return _fit(False)


def healthy():
    return _fit(True)


CASE = Case(
    bugs=("46",),
    title="A product mixes all samples of the batch",
    rule="path-disagreement",
    subject="output: in a batch / alone",
    faulty=faulty,
    healthy=healthy,
    not_reachable="Where nothing is declared, only the mixing of samples gives it away.",
)
