"""Training steps of the user's own: adversaries, teachers, encoders, policies."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from tests.healthy.data import kinds, table
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


def _dense(*widths: int, inputs: int, last: str | None = None) -> keras.Sequential:
    hidden = [layers.Dense(width, activation="relu") for width in widths[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(widths[-1], last)])


def _without_labels(model: keras.Model, *optimizers: keras.optimizers.Optimizer) -> SpooledRun:
    x, _ = table()
    model.compile(*optimizers)
    return watched_fit(model, x, batch_size=16, epochs=3)


class VariationalAutoencoder(keras.Model):
    """As on keras.io: a train_step with a tape, and trackers as metrics."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = _dense(8, 4, inputs=6), _dense(8, 6, inputs=2)
        self.seed_generator = keras.random.SeedGenerator(1)
        self.total = keras.metrics.Mean(name="loss")
        self.distance = keras.metrics.Mean(name="kl")

    @property
    def metrics(self):
        return [self.total, self.distance]

    def call(self, x):
        return self.decoder(self.encoder(x)[:, :2])

    def train_step(self, x):
        with tf.GradientTape() as tape:
            mean, spread = ops.split(self.encoder(x, training=True), 2, axis=-1)
            noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
            decoded = self.decoder(mean + ops.exp(0.5 * spread) * noise, training=True)
            kl = -0.5 * ops.mean(1 + spread - ops.square(mean) - ops.exp(spread))
            loss = ops.mean(ops.square(decoded - x)) + 0.1 * kl
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        self.distance.update_state(kl)
        return {"loss": self.total.result(), "kl": self.distance.result()}


def variational_autoencoder() -> SpooledRun:
    return _without_labels(VariationalAutoencoder(), keras.optimizers.Adam(0.005))


class Adversaries(keras.Model):
    """A generator and a discriminator, an optimizer each."""

    def __init__(self):
        super().__init__()
        self.generator = _dense(8, 6, inputs=4)
        self.discriminator = _dense(8, 1, inputs=6)
        self.judge = keras.losses.BinaryCrossentropy(from_logits=True)
        self.seed_generator = keras.random.SeedGenerator(2)

    def compile(self, first, second):
        super().compile()
        self.g_optimizer, self.d_optimizer = first, second

    def train_step(self, real):
        count = ops.shape(real)[0]
        noise = keras.random.normal((count, 4), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            both = ops.concatenate([self.generator(noise), real], axis=0)
            truth = ops.concatenate([ops.zeros((count, 1)), ops.ones((count, 1))], axis=0)
            d_loss = self.judge(truth, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            said = self.discriminator(self.generator(noise))
            g_loss = self.judge(ops.ones((count, 1)), said)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        return {"d_loss": d_loss, "g_loss": g_loss}

    def call(self, noise):
        return self.generator(noise)


def adversaries() -> SpooledRun:
    first, second = keras.optimizers.Adam(0.001), keras.optimizers.Adam(0.001)
    return _without_labels(Adversaries(), first, second)


class Student(keras.Model):
    """Learns from labels and from a teacher, in `compute_loss`."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.teacher.trainable = False

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        soft = ops.softmax(self.teacher(x, training=False) / 3.0)
        likeness = keras.losses.kl_divergence(soft, ops.softmax(y_pred / 3.0))
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 0.3 * own + 0.7 * ops.mean(likeness)

    def call(self, x):
        return self.student(x)


def knowledge_distillation() -> SpooledRun:
    x, y = kinds()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = _dense(24, 3, inputs=6)
    teacher.compile("adam", loss)
    teacher.fit(x, y, batch_size=16, epochs=2, verbose=0)
    model = Student(_dense(8, 3, inputs=6), teacher)
    model.compile("adam", loss, metrics=["accuracy"])
    return watched_fit(model, x, y, batch_size=16, epochs=2)


def noisy_student() -> SpooledRun:
    """A second model on the first one's answers, with noise at its inputs."""
    x, y = kinds(rows=160)
    first = _dense(12, 3, inputs=6, last="softmax")
    first.compile("adam", "sparse_categorical_crossentropy")
    first.fit(x[:64], y[:64], batch_size=16, epochs=3, verbose=0)
    answers = first.predict(x[64:], verbose=0)
    model = keras.Sequential([keras.Input((6,)), layers.GaussianNoise(0.2)])
    model.add(layers.Dense(16, activation="relu"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(3, activation="softmax"))
    model.compile("adam", "kl_divergence", metrics=["categorical_accuracy"])
    return watched_fit(model, x[64:], answers, batch_size=16, epochs=2)


class Contrastive(keras.Model):
    """Two noisy views of each row; all other rows of the batch are unlike it (SimCLR)."""

    def __init__(self):
        super().__init__()
        self.encoder = _dense(12, 4, inputs=6)
        self.noise = layers.GaussianNoise(0.3)

    def call(self, x, training=False):
        return self.encoder(self.noise(x, training=training))

    def train_step(self, x):
        with tf.GradientTape() as tape:
            first, second = (ops.normalize(self(x, training=True), axis=-1) for _ in range(2))
            likeness = ops.matmul(first, ops.transpose(second)) / 0.2
            itself = ops.arange(ops.shape(x)[0])
            loss = ops.mean(
                keras.losses.sparse_categorical_crossentropy(itself, likeness, from_logits=True)
            )
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def contrastive_learning() -> SpooledRun:
    return _without_labels(Contrastive(), keras.optimizers.Adam(0.003))


class Triplets(keras.Model):
    """An anchor, one like it, one unlike it; the loss is added in `call`."""

    def __init__(self):
        super().__init__()
        self.encoder = _dense(12, 4, inputs=6)

    def call(self, triplets):
        anchor, like, unlike = (self.encoder(x) for x in triplets)
        near = ops.sum(ops.square(anchor - like), axis=-1)
        far = ops.sum(ops.square(anchor - unlike), axis=-1)
        self.add_loss(ops.mean(ops.relu(near - far + 0.5)))
        return ops.stack([near, far], axis=-1)


def triplets() -> SpooledRun:
    x, _ = table()
    like = x + 0.1 * np.random.default_rng(1).normal(size=x.shape).astype("float32")
    model = Triplets()
    model.compile("adam")
    return watched_fit(model, (x, like, x[::-1].copy()), batch_size=16, epochs=3)


def siamese_twins() -> SpooledRun:
    """One encoder for both inputs; its last bias cancels out in the difference."""
    x, _ = table()
    noise = np.random.default_rng(2).random(size=(len(x), 1)).astype("float32")
    other = x + noise * np.random.default_rng(3).normal(size=x.shape).astype("float32")
    encoder = _dense(12, 4, inputs=6)
    left, right = keras.Input((6,)), keras.Input((6,))
    apart = layers.Lambda(lambda pair: ops.abs(pair[0] - pair[1]), output_shape=(4,))
    outputs = layers.Dense(1, activation="sigmoid")(apart([encoder(left), encoder(right)]))
    model = keras.Model([left, right], outputs)
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    alike = (noise < 0.5).astype("float32")
    return watched_fit(model, [x, other], alike, batch_size=8, epochs=3)


def policy_gradient() -> SpooledRun:
    """Actions that were taken, weighted by what they brought: negative weights too."""
    x, y = kinds(classes=2)
    rewards = np.where(y == (x[:, 0] > 0), 1.0, -0.5).astype("float32")
    model = _dense(12, 2, inputs=6, last="softmax")
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    return watched_fit(model, x, y, sample_weight=rewards, batch_size=16, epochs=2)


class GradientStep(keras.Model):
    """The usual step, written out."""

    def train_step(self, data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred, sample_weight=weight)
        return {metric.name: metric.result() for metric in self.metrics}


def gradient_tape_step() -> SpooledRun:
    x, y = kinds()
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(12, activation="relu")(inputs))
    model = GradientStep(inputs, layers.Dense(3, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, batch_size=16, epochs=2)


WORKFLOWS = [
    variational_autoencoder,
    adversaries,
    knowledge_distillation,
    noisy_student,
    contrastive_learning,
    triplets,
    siamese_twins,
    policy_gradient,
    gradient_tape_step,
]
