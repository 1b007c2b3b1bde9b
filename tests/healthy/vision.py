"""Pictures: classified, cut into segments, compressed, augmented."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from tests.healthy.data import pictures
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


def mnist_like_convnet() -> SpooledRun:
    x, y = pictures()
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    one_hot = keras.utils.to_categorical(y, 3)
    return watched_fit(model, x, one_hot, batch_size=16, epochs=2, validation_split=0.1)


def residual_network() -> SpooledRun:
    x, y = pictures(side=8)
    inputs = keras.Input((8, 8, 1))
    features = layers.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    for strides in (1, 2):
        inner = layers.ReLU()(layers.BatchNormalization(momentum=0.7)(features))
        inner = layers.Conv2D(6, 3, strides=strides, padding="same")(inner)
        way_past = layers.Conv2D(6, 1, strides=strides)(features)
        features = layers.add([inner, way_past])
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(features))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return watched_fit(model, x, y, batch_size=16, epochs=2)


def augmented_bytes() -> SpooledRun:
    """Pictures as bytes, rescaled and augmented inside the model."""
    x, y = pictures()
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.RandomFlip("vertical"),
            layers.RandomRotation(0.02, fill_mode="nearest"),
            layers.RandomZoom(0.1),
            layers.Conv2D(6, 3, strides=2, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, (x * 255).astype("uint8"), y, batch_size=16, epochs=2)


def small_unet() -> SpooledRun:
    """Each pixel: bright or not."""
    x, _ = pictures(side=8)
    inputs = keras.Input((8, 8, 1))
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    down = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(first)
    up = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(down)
    joined = layers.Concatenate()([first, up])
    model = keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(joined))
    metrics = [
        keras.metrics.SparseCategoricalAccuracy(),
        keras.metrics.MeanIoU(2, sparse_y_pred=False),
    ]
    model.compile("rmsprop", "sparse_categorical_crossentropy", metrics=metrics)
    return watched_fit(model, x, (x > 0.7).astype("uint8"), batch_size=16, epochs=2)


def autoencoder() -> SpooledRun:
    """Noisy pictures in, clean ones out."""
    x, _ = pictures(side=8)
    noisy = (x + 0.2 * np.random.default_rng(4).normal(size=x.shape)).clip(0, 1).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy")
    return watched_fit(model, noisy, x, batch_size=16, epochs=2, validation_split=0.2)


def mlp_mixer() -> SpooledRun:
    x, y = pictures(side=8)
    inputs = keras.Input((8, 8, 1))
    patches = layers.Reshape((4, 16))(layers.Conv2D(16, 4, strides=4)(inputs))
    mixed = layers.LayerNormalization()(patches)
    mixed = layers.Permute((2, 1))(layers.Dense(4, "gelu")(layers.Permute((2, 1))(mixed)))
    patches = layers.Add()([patches, mixed])
    patches = layers.Add()(
        [patches, layers.Dense(16, "gelu")(layers.LayerNormalization()(patches))]
    )
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(patches))
    model = keras.Model(inputs, outputs)
    adam = keras.optimizers.AdamW(0.005)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, y, batch_size=16, epochs=2)


class Patches(layers.Layer):
    """Patches with learnt positions, as vision transformers begin."""

    def __init__(self, count: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.count, self.width = count, width
        self.projection = layers.Dense(width)
        self.position = layers.Embedding(count, width)

    def call(self, images):
        patches = keras.ops.image.extract_patches(images, 4)
        patches = keras.ops.reshape(patches, (-1, self.count, patches.shape[-1]))
        return self.projection(patches) + self.position(keras.ops.arange(self.count))

    def get_config(self):
        return super().get_config() | {"count": self.count, "width": self.width}


def vision_transformer() -> SpooledRun:
    x, y = pictures(side=8)
    inputs = keras.Input((8, 8, 1))
    tokens = Patches(4, 8)(inputs)
    normal = layers.LayerNormalization()(tokens)
    tokens = layers.Add()([tokens, layers.MultiHeadAttention(2, 4, dropout=0.1)(normal, normal)])
    outputs = layers.Dense(3)(layers.Flatten()(layers.LayerNormalization()(tokens)))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2)])
    return watched_fit(model, x, y, batch_size=16, epochs=2)


def transfer_learning() -> list[SpooledRun]:
    """A backbone trained, then frozen under a new head, then tuned as a whole."""
    x, y = pictures(side=8)
    backbone = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.BatchNormalization(momentum=0.7),
            layers.GlobalAveragePooling2D(),
        ]
    )
    before = keras.Sequential([backbone, layers.Dense(1)])
    before.compile("adam", "mse")
    before.fit(x, x.mean(axis=(1, 2)), verbose=0)
    backbone.trainable = False
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(backbone(inputs, training=False)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    head = watched_fit(model, x, y, batch_size=16, epochs=2)
    backbone.trainable = True
    tuning = keras.optimizers.Adam(1e-4)
    model.compile(tuning, "sparse_categorical_crossentropy", metrics=["accuracy"])
    tuned = watched_fit(model, x, y, batch_size=16, epochs=2)
    return [head, tuned]


def mixup() -> SpooledRun:
    """Pairs of pictures, and of their labels, mixed in the data pipeline."""
    import tensorflow as tf

    x, y = pictures(side=8)
    one_hot = keras.utils.to_categorical(y, 3).astype("float32")

    def mix(first, second):
        share = tf.random.uniform((), 0.0, 0.3, seed=1)
        return tuple((1 - share) * a + share * b for a, b in zip(first, second, strict=True))

    data = tf.data.Dataset.from_tensor_slices((x, one_hot))
    other = data.shuffle(64, seed=2)
    data = tf.data.Dataset.zip(data.shuffle(64, seed=1), other).map(mix).batch(16).prefetch(1)
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(6, 3, activation="relu")])
    model.add(layers.Flatten())
    model.add(layers.Dense(3, activation="softmax"))
    model.compile("adam", keras.losses.CategoricalCrossentropy(), metrics=["accuracy"])
    return watched_fit(model, data, epochs=2)


def two_heads_of_one_picture() -> SpooledRun:
    """As in detection: what it is and where it is."""
    x, y = pictures(side=8)
    inputs = keras.Input((8, 8, 1))
    features = layers.Flatten()(layers.Conv2D(6, 3, activation="relu")(inputs))
    kind = layers.Dense(3, activation="softmax", name="kind")(features)
    place = layers.Dense(1, activation="sigmoid", name="place")(features)
    model = keras.Model(inputs, [kind, place])
    losses = ["sparse_categorical_crossentropy", "huber"]
    model.compile("adam", losses, loss_weights=[1.0, 2.0], metrics=[["accuracy"], ["mae"]])
    at = x.mean(axis=(1, 3)).argmax(axis=1)[:, None] / 8
    return watched_fit(model, x, [y, at.astype("float32")], batch_size=16, epochs=2)


WORKFLOWS = [
    mnist_like_convnet,
    residual_network,
    augmented_bytes,
    small_unet,
    autoencoder,
    mlp_mixer,
    vision_transformer,
    transfer_learning,
    mixup,
    two_heads_of_one_picture,
]
