"""A layer whose `compute_output_shape` builds it before its input is known."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points


class Scaling(keras.layers.Layer):
    """One factor for each feature, if it knows how many there are, else one for all."""

    eager_to_build = True

    def build(self, input_shape):
        width = 1 if input_shape is None else input_shape[-1]
        self.factors = self.add_weight(shape=(width,), initializer="ones")

    def call(self, x):
        return ops.multiply(x, self.factors)

    def compute_output_shape(self, input_shape):
        if self.eager_to_build and not self.built:
            self.build(None)
        return input_shape


class Patient(Scaling):
    eager_to_build = False


def _fit(kind):
    scaling = kind(name="scaling")
    scaling.compute_output_shape((None, 4))  # as a summary of the plan would
    model = keras.Sequential([keras.Input((4,)), scaling, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return watched_fit(model, *points(), epochs=2, batch_size=8)


def faulty():
    return _fit(Scaling)


def healthy():
    return _fit(Patient)


CASE = Case(
    bugs=("8",),
    title="A layer is built without a shape",
    rule="shape-declared-vs-actual",
    subject="scaling input",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    not_reachable="Layers whose build() is given something else than shapes record nothing.",
)
