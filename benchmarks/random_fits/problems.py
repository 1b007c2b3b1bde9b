"""Random models with data that they can learn: one function for each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from random_fits.targets import Target, any_target

Array = NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True)
class Problem:
    """A model, the data for it, and how to judge it; several outputs as dicts by name."""

    words: str
    model: keras.Model
    x: Any
    y: Any
    loss: Any
    metrics: Any


def rows_of(rng: Rng) -> int:
    return int(rng.integers(96, 400))


def activation(rng: Rng) -> str:
    some = ["relu", "relu", "gelu", "tanh", "selu", "silu", "leaky_relu", "elu", "mish", "sigmoid"]
    return str(rng.choice(some))


def width(rng: Rng) -> int:
    return int(rng.choice([4, 8, 12, 16, 24]))


def regularizer(rng: Rng) -> Any:
    """None for weights that are not float32: Keras 3.15 cannot add them to a float32 loss."""
    if keras.config.dtype_policy().variable_dtype != "float32":
        return None
    some = [None, None, None, "l2", "l1", keras.regularizers.L1L2(1e-4, 1e-3)]
    return some[rng.integers(len(some))]


def dropout(rng: Rng) -> keras.layers.Layer:
    rate = float(rng.choice([0.0, 0.1, 0.3, 0.5]))
    kinds = [layers.Dropout, layers.GaussianDropout, layers.Dropout]
    return layers.GaussianNoise(0.1) if rng.random() < 0.2 else kinds[rng.integers(3)](rate)


def normalization(rng: Rng) -> keras.layers.Layer:
    momentum = float(rng.choice([0.6, 0.8, 0.9]))
    some: list[Callable[[], keras.layers.Layer]] = [
        lambda: layers.BatchNormalization(momentum=momentum),
        layers.LayerNormalization,
        lambda: layers.GroupNormalization(groups=2),
        lambda: layers.UnitNormalization(),
    ]
    return some[rng.choice(4, p=[0.5, 0.3, 0.1, 0.1])]()


def dense_block(rng: Rng, x: Any) -> Any:
    """A dense layer with what people put around it; now and then with a way past it."""
    inner = layers.Dense(
        width(rng), kernel_regularizer=regularizer(rng), use_bias=rng.random() < 0.8
    )(x)
    if rng.random() < 0.4:
        inner = normalization(rng)(inner)
    inner = layers.Activation(activation(rng))(inner)
    if rng.random() < 0.4:
        inner = dropout(rng)(inner)
    if rng.random() < 0.3:
        inner = layers.Add()([inner, layers.Dense(inner.shape[-1])(x)])
    return inner


def numbers(rng: Rng, rows: int, columns: int) -> tuple[Array, Array]:
    """A table of one of several scales; a score that depends on it; (rows, columns), (rows,)."""
    x = rng.normal(size=(rows, columns))
    score = x @ rng.normal(size=columns) + 0.5 * np.tanh(3 * x[:, 0] * x[:, 1])
    scale = float(rng.choice([0.3, 1.0, 1.0, 3.0, 100.0]))
    x = x * scale + scale * float(rng.choice([0.0, 0.0, 2.0]))
    return x.astype(rng.choice(["float32", "float32", "float64"])), score / score.std()


def normalized(x: Array, inputs: Any) -> Any:
    """Inputs behind a `Normalization` layer where their scale asks for one."""
    if np.abs(x).max() < 10:
        return inputs
    layer = layers.Normalization()
    layer.adapt(x.astype("float32"))
    return layer(inputs)


def one_output(words: str, inputs: Any, features: Any, x: Any, target: Target) -> Problem:
    model = keras.Model(inputs, target(features))
    return Problem(
        f"{words}, {target.words}", model, x, target.labels, target.loss, target.metrics()
    )


def dense(rng: Rng, dtype: str | None) -> Problem:
    x, score = numbers(rng, rows_of(rng), int(rng.integers(3, 20)))
    inputs = keras.Input(x.shape[1:])
    features = normalized(x, inputs)
    for _ in range(rng.integers(1, 5)):
        features = dense_block(rng, features)
    return one_output("dense", inputs, features, x, any_target(rng, score, dtype))


def nested(rng: Rng, dtype: str | None) -> Problem:
    """A functional model that calls a sequential one, which calls another."""
    x, score = numbers(rng, rows_of(rng), 6)
    inputs = keras.Input((6,))
    start = normalized(x, inputs)
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), normalization(rng)])
    outer = keras.Sequential([keras.Input((6,)), layers.Dense(8), inner, layers.Activation("gelu")])
    features = outer(start)
    if rng.random() < 0.5:
        features = layers.Concatenate()([features, inner(layers.Dense(8)(start))])
    return one_output("nested", inputs, features, x, any_target(rng, score, dtype))


class Blocks(keras.Model):
    """A model of the user's own, without a config: quite usual."""

    def __init__(self, rng: Rng, end: list[keras.layers.Layer]):
        super().__init__()
        self.blocks = [layers.Dense(width(rng), activation(rng)) for _ in range(rng.integers(1, 4))]
        self.dropout = dropout(rng)
        self.norm = normalization(rng)
        self.end = end

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = inputs
        for block in self.blocks:
            x = block(x)
        x = self.dropout(self.norm(x, training=training), training=training)
        for layer in self.end:
            x = layer(x)
        return x


def subclassed(rng: Rng, dtype: str | None) -> Problem:
    x, score = numbers(rng, rows_of(rng), 5)
    x = (x - x.mean()) / x.std()
    target = any_target(rng, score, dtype)
    model = Blocks(rng, target.layers)
    if rng.random() < 0.5:
        model(x[:2])
    words = f"subclassed, {target.words}"
    return Problem(words, model, x, target.labels, target.loss, target.metrics())


def images(rng: Rng, rows: int, side: int, channels: int) -> tuple[Array, Array]:
    """Noise with a bright spot, as floats of 0..1 or as bytes, and where the spot lies."""
    x = rng.random(size=(rows, side, side, channels)) * 0.5
    at = rng.integers(0, side - 2, size=rows)
    for row, column in enumerate(at):
        x[row, :, column : column + 2] += 0.5
    score = at / side + 0.01 * rng.normal(size=rows)
    score = (score - score.mean()) / score.std()
    if rng.random() < 0.3:
        return (x * 255).astype("uint8"), score
    return x.astype("float32"), score


def prepared_images(rng: Rng, x: Array, inputs: Any) -> Any:
    features = layers.Rescaling(1 / 255)(inputs) if x.dtype == np.uint8 else inputs
    kinds = [
        lambda: layers.RandomFlip("vertical"),
        lambda: layers.RandomTranslation(0.1, 0.0, fill_mode="nearest"),
        lambda: layers.RandomContrast(0.2, value_range=(0, 1)),
    ]
    return kinds[rng.integers(3)]()(features) if rng.random() < 0.4 else features


def convolution_block(rng: Rng, x: Any) -> Any:
    count = int(rng.choice([4, 6, 8]))
    kinds: list[Callable[[], keras.layers.Layer]] = [
        lambda: layers.Conv2D(count, 3, padding="same"),
        lambda: layers.Conv2D(count, 3, padding="same", strides=2),
        lambda: layers.Conv2D(count, 3, padding="same", dilation_rate=2),
        lambda: layers.SeparableConv2D(count, 3, padding="same"),
        lambda: layers.DepthwiseConv2D(3, padding="same"),
    ]
    inner = kinds[rng.integers(5)]()(x)
    if rng.random() < 0.5:
        inner = layers.BatchNormalization(momentum=0.7)(inner)
    inner = layers.Activation(activation(rng))(inner)
    if rng.random() < 0.4 and inner.shape[1] >= 4:
        inner = [layers.MaxPooling2D, layers.AveragePooling2D][rng.integers(2)](2)(inner)
    if rng.random() < 0.3:
        inner = layers.SpatialDropout2D(0.2)(inner)
    if rng.random() < 0.3:
        side = layers.Conv2D(inner.shape[-1], 3, padding="same")(inner)
        inner = layers.Add()([inner, side])
    return inner


def convolutional(rng: Rng, dtype: str | None) -> Problem:
    side, channels = int(rng.choice([8, 12, 16])), int(rng.choice([1, 3]))
    x, score = images(rng, int(rng.integers(64, 160)), side, channels)
    inputs = keras.Input((side, side, channels), dtype=str(x.dtype))
    features = prepared_images(rng, x, inputs)
    for _ in range(rng.integers(1, 4)):
        features = convolution_block(rng, features)
    ends = [layers.Flatten, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D]
    features = ends[rng.integers(3)]()(features)
    return one_output("convolutional", inputs, features, x, any_target(rng, score, dtype))


def autoencoder(rng: Rng, dtype: str | None) -> Problem:
    """Images in, images out; or which pixels are bright."""
    x, _ = images(rng, int(rng.integers(64, 128)), 8, 1)
    small = (x / 255 if x.dtype == np.uint8 else x).astype("float32")
    inputs = keras.Input((8, 8, 1))
    down = layers.Conv2D(8, 3, strides=2, padding="same", activation=activation(rng))(inputs)
    middle = layers.Conv2D(8, 3, padding="same", activation="relu")(down)
    up = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(middle)
    if rng.random() < 0.5:
        skip = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
        up = layers.Concatenate()([up, skip])
    if rng.random() < 0.5:
        outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype=dtype)(up)
        model = keras.Model(inputs, outputs)
        bright = (small > 0.5).astype("float32")
        return Problem("segmentation", model, small, bright, "binary_crossentropy", ["accuracy"])
    outputs = layers.Conv2D(1, 1, dtype=dtype)(up)
    return Problem("autoencoder", keras.Model(inputs, outputs), small, small, "mse", ["mae"])


def recurrent_layer(rng: Rng, *, sequences: bool) -> keras.layers.Layer:
    kind = [layers.LSTM, layers.GRU, layers.SimpleRNN][rng.integers(3)]
    half = keras.config.dtype_policy().variable_dtype == "bfloat16"
    layer = kind(
        int(rng.choice([4, 6, 8])),
        # TensorFlow has no QR decomposition in half precision, which "orthogonal" needs.
        recurrent_initializer="glorot_uniform" if half else "orthogonal",
        return_sequences=sequences,
        dropout=float(rng.choice([0.0, 0.0, 0.2])),
        go_backwards=not sequences and rng.random() < 0.2,
    )
    if rng.random() < 0.4:
        merge = str(rng.choice(["concat", "sum", "ave"]))
        if not layer.go_backwards:
            return layers.Bidirectional(layer, merge_mode=merge)
    return layer


def waves(rng: Rng, rows: int, length: int, columns: int) -> tuple[Array, Array]:
    """Sine waves with noise, and the phase that they have reached; (rows, length, columns)."""
    phase = rng.random(size=(rows, 1, columns)) * 6
    speed = 0.2 + rng.random(size=(rows, 1, 1))
    time = np.arange(length)[None, :, None]
    x = np.sin(phase + speed * time) + 0.1 * rng.normal(size=(rows, length, columns))
    return x.astype("float32"), np.sin(phase + speed * (time + 1))[..., 0]


def time_series(rng: Rng, dtype: str | None) -> Problem:
    """Recurrent or convolutional, the next value or one for each step."""
    length, columns = int(rng.integers(5, 14)), int(rng.integers(1, 4))
    x, following = waves(rng, rows_of(rng), length, columns)
    inputs = keras.Input((length if rng.random() < 0.7 else None, columns))
    each = rng.random() < 0.4
    features: Any = inputs
    if rng.random() < 0.4:
        padding = str(rng.choice(["causal", "same"]))
        features = layers.Conv1D(8, 3, padding=padding, activation=activation(rng))(features)
    if rng.random() < 0.4:
        features = recurrent_layer(rng, sequences=True)(features)
    features = recurrent_layer(rng, sequences=each)(features)
    score = following if each else following[:, -1]
    return one_output("time series", inputs, features, x, any_target(rng, score, dtype))


def padded_ids(rng: Rng, words: int) -> Array:
    """Ids from 1, padded with 0 behind (or before) sentences of different lengths."""
    rows, length = int(rng.integers(96, 300)), int(rng.integers(6, 16))
    x = rng.integers(1, words, size=(rows, length)).astype(rng.choice(["int32", "int64"]))
    x[np.arange(length) >= rng.integers(2, length + 1, size=(rows, 1))] = 0
    return x


def attention_block(rng: Rng, x: Any) -> Any:
    size = x.shape[-1]
    attention = layers.MultiHeadAttention(2, size // 2, dropout=float(rng.choice([0.0, 0.1])))
    # A tensor of its own: Keras 3.15 takes the mask off what attention is given.
    inner = layers.LayerNormalization()(x)
    x = layers.Add()([x, attention(inner, inner, use_causal_mask=bool(rng.random() < 0.3))])
    forward = layers.Dense(size)(layers.Dense(2 * size, activation="gelu")(x))
    return layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.1)(forward)]))


def sequence_features(rng: Rng, x: Any) -> Any:
    """Layers that pass a mask on."""
    for _ in range(rng.integers(1, 3)):
        kind = rng.integers(4)
        if kind == 0:
            x = attention_block(rng, x)
        elif kind == 1:
            x = layers.TimeDistributed(layers.Dense(8, activation=activation(rng)))(x)
        elif kind == 2:
            x = layers.Dropout(0.2)(layers.Dense(8, activation=activation(rng))(x))
        else:
            x = recurrent_layer(rng, sequences=True)(x)
    return x


def word_vectors(rng: Rng, inputs: Any, words: int, *, mask: bool) -> Any:
    size = int(rng.choice([6, 8, 12]))
    embedded = layers.Embedding(words + int(rng.integers(0, 5)), size, mask_zero=mask)(inputs)
    return layers.SpatialDropout1D(0.1)(embedded) if rng.random() < 0.2 else embedded


def tagger(rng: Rng, dtype: str | None) -> Problem:
    """A label for each word, the mask through to the loss."""
    words = int(rng.integers(20, 60))
    x = padded_ids(rng, words)
    inputs = keras.Input((x.shape[1] if rng.random() < 0.6 else None,), dtype="int32")
    features = sequence_features(rng, word_vectors(rng, inputs, words, mask=True))
    score = x / words * 3 + 0.1 * rng.normal(size=x.shape)
    return one_output("tagger", inputs, features, x, any_target(rng, score, dtype))


def text(rng: Rng, dtype: str | None) -> Problem:
    """One label for each sentence; the mask ends where the time axis does."""
    words = int(rng.integers(20, 60))
    x = padded_ids(rng, words)
    inputs = keras.Input((x.shape[1],), dtype="int32")
    features = word_vectors(rng, inputs, words, mask=bool(rng.random() < 0.7))
    if rng.random() < 0.5:
        features = sequence_features(rng, features)
    kind = rng.integers(3)
    if kind == 0:
        features = recurrent_layer(rng, sequences=False)(features)
    elif kind == 1:
        features = layers.GlobalAveragePooling1D()(features)
    else:
        features = layers.GlobalMaxPooling1D()(features)
    score = (x > words / 2).sum(axis=1) / (x > 0).sum(axis=1) + 0.05 * rng.normal(size=len(x))
    return one_output("text", inputs, features, x, any_target(rng, score * 3, dtype))


def masked_series(rng: Rng, dtype: str | None) -> Problem:
    """Series of different lengths behind a `Masking` layer."""
    x, following = waves(rng, rows_of(rng), 9, 2)
    x[np.arange(9) >= rng.integers(3, 10, size=(len(x), 1))] = 0.0
    inputs = keras.Input((9, 2))
    each = rng.random() < 0.5
    features = recurrent_layer(rng, sequences=each)(layers.Masking()(inputs))
    score = following if each else following[:, 0]
    return one_output("masked series", inputs, features, x, any_target(rng, score, dtype))


def table_with_categories(rng: Rng, dtype: str | None) -> Problem:
    """Embeddings of categories beside numbers; a wide part now and then."""
    rows, sizes = rows_of(rng), rng.integers(3, 20, size=rng.integers(2, 5))
    ids = {f"kind{i}": rng.integers(0, n, size=rows).astype("int32") for i, n in enumerate(sizes)}
    x, score = numbers(rng, rows, 4)
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in ids}
    tower = [layers.Embedding(int(n), 3)(inputs[f"kind{i}"]) for i, n in enumerate(sizes)]
    table = keras.Input((4,), name="numbers")
    features = dense_block(rng, layers.Concatenate()([*tower, normalized(x, table)]))
    if rng.random() < 0.4:
        wide = [
            layers.CategoryEncoding(int(n), "one_hot")(inputs[f"kind{i}"])
            for i, n in enumerate(sizes)
        ]
        features = layers.Concatenate()([features, *wide])
    score = score + sum(ids.values()) / sizes.sum()
    given = {**ids, "numbers": x}
    target = any_target(rng, score, dtype)
    return one_output("categories", {**inputs, "numbers": table}, features, given, target)


def several_outputs(rng: Rng, dtype: str | None) -> Problem:
    x, score = numbers(rng, rows_of(rng), 6)
    other, second = numbers(rng, len(x), 3)
    left, right = keras.Input((6,), name="left"), keras.Input((3,), name="right")
    a, b = dense_block(rng, normalized(x, left)), dense_block(rng, normalized(other, right))
    shared = dense_block(rng, layers.Concatenate()([a, b]))
    targets = {name: any_target(rng, s, dtype) for name, s in (("a", score), ("b", second))}
    outputs = {name: target(shared) for name, target in targets.items()}
    model = keras.Model({"left": left, "right": right}, outputs)
    return Problem(
        "two inputs, two outputs: " + " and ".join(t.words for t in targets.values()),
        model,
        {"left": x, "right": other},
        {name: target.labels for name, target in targets.items()},
        {name: target.loss for name, target in targets.items()},
        {name: target.metrics() for name, target in targets.items()},
    )


class Difference(layers.Layer):
    """Distance of two encodings, in each direction."""

    def call(self, left: Any, right: Any) -> Any:
        return ops.abs(left - right)


def twins(rng: Rng, dtype: str | None) -> Problem:
    """One encoder for two inputs: are they alike?"""
    x, _ = numbers(rng, rows_of(rng), 6)
    x = ((x - x.mean()) / x.std()).astype("float32")
    noise = rng.random(size=len(x))
    other = x + (noise[:, None] * rng.normal(size=x.shape)).astype("float32")
    encoder = keras.Sequential(
        [keras.Input((6,)), layers.Dense(12, activation(rng)), layers.Dense(6)]
    )
    left, right = keras.Input((6,)), keras.Input((6,))
    features = Difference()(encoder(left), encoder(right))
    target = any_target(rng, noise, dtype)
    return one_output("twins", [left, right], features, [x, other], target)


class Sampling(layers.Layer):
    """Draws from a normal distribution and adds its distance from the standard one to the loss."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, mean: Any, log_variance: Any) -> Any:
        spread = ops.exp(log_variance) + ops.square(mean) - 1.0 - log_variance
        self.add_loss(0.01 * ops.mean(ops.cast(spread, "float32")))
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator, dtype=mean.dtype)
        return mean + ops.exp(0.5 * log_variance) * noise


def variational(rng: Rng, dtype: str | None) -> Problem:
    x, _ = numbers(rng, rows_of(rng), 6)
    x = ((x - x.mean()) / x.std()).astype("float32")
    inputs = keras.Input((6,))
    hidden = layers.Dense(12, activation=activation(rng))(inputs)
    drawn = Sampling()(layers.Dense(3)(hidden), layers.Dense(3)(hidden))
    decoded = layers.Dense(6, dtype=dtype)(layers.Dense(12, activation="relu")(drawn))
    return Problem("variational", keras.Model(inputs, decoded), x, x, "mse", ["mae"])


FAMILIES: tuple[Callable[[Rng, str | None], Problem], ...] = (
    dense,
    dense,
    nested,
    subclassed,
    convolutional,
    convolutional,
    autoencoder,
    time_series,
    time_series,
    tagger,
    tagger,
    text,
    text,
    masked_series,
    table_with_categories,
    several_outputs,
    twins,
    variational,
)


def any_problem(rng: Rng, dtype: str | None) -> Problem:
    """
    Args:
        dtype: of last layers; None for that of the policy.
    """
    return FAMILIES[rng.integers(len(FAMILIES))](rng, dtype)
