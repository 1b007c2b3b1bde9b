"""Tables: numbers and categories, rare classes, several labels, quantiles, recommendations."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops
from tests.healthy.data import kinds, table
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


def wide_and_deep() -> SpooledRun:
    x, y = table()
    kind = (x[:, 0] > 0).astype("int32") * 3 + (x[:, 1] > 0)
    numbers, category = (
        keras.Input((6,), name="numbers"),
        keras.Input((), dtype="int32", name="kind"),
    )
    wide = layers.CategoryEncoding(5, "one_hot")(category)
    deep = layers.Concatenate()([numbers, layers.Embedding(5, 3)(category)])
    for _ in range(2):
        deep = layers.Dropout(0.1)(layers.Dense(12, activation="relu")(deep))
        deep = layers.BatchNormalization(momentum=0.7)(deep)
    outputs = layers.Dense(1)(layers.Concatenate()([wide, deep]))
    model = keras.Model({"numbers": numbers, "kind": category}, outputs)
    model.compile("adam", "mse", metrics=["mae"])
    return watched_fit(model, {"numbers": x, "kind": kind}, y, batch_size=16, epochs=2)


def normalized_inputs() -> SpooledRun:
    """House prices, so to say: inputs and targets of large and very different scales."""
    x, y = table()
    x = x * np.array([1, 10, 100, 1e3, 1, 1e4], "float32") + 50
    layer = layers.Normalization()
    layer.adapt(x)
    model = keras.Sequential([keras.Input((6,)), layer, layers.Dense(16, activation="relu")])
    model.add(layers.Dense(1))
    model.compile(keras.optimizers.RMSprop(0.01), "mse", metrics=["mae", "mape"])
    return watched_fit(model, x, 200 + 50 * y, batch_size=16, epochs=3, validation_split=0.2)


def imbalanced_with_class_weights() -> SpooledRun:
    """Rare cases weigh more; the metrics are those of the Keras example on fraud."""
    x, y = table(rows=256)
    rare = (y > 1.2).astype("float32")
    weights = {0: 1.0 / (rare == 0).sum(), 1: 1.0 / (rare == 1).sum()}
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation="relu")])
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(1, activation="sigmoid"))
    metrics = [
        keras.metrics.FalseNegatives(name="fn"),
        keras.metrics.TruePositives(name="tp"),
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
    ]
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=metrics)
    return watched_fit(model, x, rare, class_weight=weights, batch_size=32, epochs=3)


def weights_for_loss_and_metrics() -> SpooledRun:
    x, y = kinds()
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax")])
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted_accuracy")],
    )
    return watched_fit(model, x, y, sample_weight=1.0 + (y == 2), batch_size=16, epochs=2)


def several_labels() -> SpooledRun:
    x, y = table()
    labels = np.stack([y > -1, y > 0, y > 1], axis=1).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation="relu")])
    model.add(layers.Dense(3, activation="sigmoid"))
    metrics = [keras.metrics.AUC(multi_label=True), keras.metrics.F1Score(threshold=0.5)]
    model.compile("adam", "binary_crossentropy", metrics=[*metrics, "binary_accuracy"])
    return watched_fit(model, x, labels, batch_size=16, epochs=2)


def ordinal_classes() -> SpooledRun:
    """Four grades as three questions: is it better than this one?"""
    x, y = kinds(classes=4)
    steps = (y[:, None] > np.arange(3)).astype("float32")

    def grade_error(y_true, y_pred):
        return ops.abs(ops.sum(y_true, -1) - ops.sum(ops.cast(y_pred > 0.5, "float32"), -1))

    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation="relu")])
    model.add(layers.Dense(3, activation="sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=[grade_error])
    return watched_fit(model, x, steps, batch_size=16, epochs=2)


def quantile_regression() -> SpooledRun:
    x, y = table()
    quantiles = np.array([0.1, 0.5, 0.9], "float32")

    def pinball(y_true, y_pred):
        error = y_true - y_pred
        return ops.mean(ops.maximum(quantiles * error, (quantiles - 1) * error), axis=-1)

    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation="tanh")])
    model.add(layers.Dense(3))
    model.compile(keras.optimizers.Adam(0.01), pinball)
    return watched_fit(model, x, y[:, None], batch_size=16, epochs=2)


class Coverage(keras.metrics.Metric):
    """Share of targets within one of their prediction."""

    def __init__(self, name="coverage", **kwargs):
        super().__init__(name=name, **kwargs)
        self.within = self.add_weight(name="within", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        within = ops.cast(ops.abs(y_true - y_pred) < 1.0, "float32")
        self.within.assign_add(ops.sum(within))
        self.count.assign_add(ops.cast(ops.size(within), "float32"))

    def result(self):
        return self.within / ops.maximum(self.count, 1.0)


def metric_of_ones_own() -> SpooledRun:
    x, y = table()
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="elu"), layers.Dense(1)]
    )
    model.compile("nadam", "huber", metrics=[Coverage(), keras.metrics.R2Score()])
    return watched_fit(model, x, y[:, None], batch_size=16, epochs=2, validation_split=0.2)


class Experts(layers.Layer):
    """Experts whose outputs a gate mixes; a loss keeps all of them in use."""

    def __init__(self, count: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.count, self.width = count, width
        self.gate = layers.Dense(count, activation="softmax")
        self.experts = [layers.Dense(width, activation="relu") for _ in range(count)]

    def call(self, inputs):
        shares = self.gate(inputs)
        self.add_loss(0.01 * self.count * ops.sum(ops.square(ops.mean(shares, axis=0))))
        outputs = ops.stack([expert(inputs) for expert in self.experts], axis=1)
        return ops.sum(outputs * shares[..., None], axis=1)

    def get_config(self):
        return super().get_config() | {"count": self.count, "width": self.width}


def mixture_of_experts() -> SpooledRun:
    x, y = kinds()
    inputs = keras.Input((6,))
    outputs = layers.Dense(3, activation="softmax")(Experts(3, 8)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, batch_size=16, epochs=2)


class AlwaysDropout(layers.Dropout):
    """Monte Carlo dropout: on in inference too."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=True)


def monte_carlo_dropout() -> SpooledRun:
    x, y = table()
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="relu"),
            AlwaysDropout(0.3),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    return watched_fit(model, x, y, batch_size=16, epochs=2, validation_split=0.2)


class Recommender(keras.Model):
    """Matrix factorization, as in the Keras example."""

    def __init__(self):
        super().__init__()
        self.users, self.user_bias = layers.Embedding(20, 6), layers.Embedding(20, 1)
        self.films, self.film_bias = layers.Embedding(30, 6), layers.Embedding(30, 1)

    def call(self, pairs):
        user, film = pairs[:, 0], pairs[:, 1]
        liking = ops.sum(self.users(user) * self.films(film), axis=1, keepdims=True)
        return ops.sigmoid(liking + self.user_bias(user) + self.film_bias(film))


def recommender() -> SpooledRun:
    rng = np.random.default_rng(9)
    pairs = np.stack([rng.integers(0, 20, 160), rng.integers(0, 30, 160)], axis=1).astype("int32")
    liked = ((pairs.sum(axis=1) % 5) / 4).astype("float32")
    model = Recommender()
    model.compile("adam", keras.losses.BinaryCrossentropy())
    return watched_fit(model, pairs, liked, batch_size=16, epochs=2)


WORKFLOWS = [
    wide_and_deep,
    normalized_inputs,
    imbalanced_with_class_weights,
    weights_for_loss_and_metrics,
    several_labels,
    ordinal_classes,
    quantile_regression,
    metric_of_ones_own,
    mixture_of_experts,
    monte_carlo_dropout,
    recommender,
]
