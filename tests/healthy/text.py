"""Words: classified, tagged, predicted, translated; with and without masks."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops
from tests.healthy.data import Ids, opinions, sentences
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun

WORDS = 30
LENGTH = 10


def masked_lstm_classifier() -> SpooledRun:
    x = sentences()
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(WORDS, 8, mask_zero=True),
            layers.Bidirectional(layers.LSTM(6, return_sequences=True)),
            layers.LSTM(6),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC()])
    return watched_fit(model, x, opinions(x), batch_size=16, epochs=2, validation_split=0.2)


def transformer_block(x):
    """Normalized before attention: Keras 3.15 takes the mask off the tensor that attention gets."""
    normal = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, dropout=0.1)(normal, normal)])
    forward = layers.Dense(8)(layers.Dense(16, activation="relu")(x))
    return layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.1)(forward)]))


class TokensAndPositions(layers.Layer):
    """As on keras.io: two embeddings added, the mask of the tokens passed on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.tokens = layers.Embedding(WORDS, 8, mask_zero=True)
        self.positions = layers.Embedding(LENGTH, 8)

    def call(self, ids):
        return self.tokens(ids) + self.positions(ops.arange(LENGTH))

    def compute_mask(self, ids, mask=None):
        return self.tokens.compute_mask(ids)


def transformer_classifier() -> SpooledRun:
    x = sentences()
    inputs = keras.Input((LENGTH,), dtype="int32")
    features = transformer_block(TokensAndPositions()(inputs))
    features = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(features))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(features))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, opinions(x).astype("int32"), batch_size=16, epochs=2)


def masked_tagger() -> SpooledRun:
    """A class for each word, 0 on padding."""
    x = sentences()
    inputs = keras.Input((LENGTH,), dtype="int32")
    features = transformer_block(TokensAndPositions()(inputs))
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(features))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, np.where(x > 0, x % 4 + 1, 0), batch_size=16, epochs=2)


def tagger_that_ignores_a_class() -> SpooledRun:
    """Without masks: the loss and the metric leave padding out by themselves."""
    x = sentences()
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(WORDS, 8),
            layers.GRU(6, return_sequences=True),
            layers.Dense(5),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model.compile("adam", loss)
    return watched_fit(model, x, np.where(x > 0, x % 4, -1), batch_size=16, epochs=2)


def convolutions_over_words() -> SpooledRun:
    x = sentences()
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int64"),
            layers.Embedding(WORDS, 8),
            layers.Conv1D(8, 3, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(8, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)])
    return watched_fit(model, x, opinions(x), batch_size=16, epochs=2)


def translation() -> SpooledRun:
    """Encoder and decoder; the decoder sees the target shifted by one, all of one length."""
    source = np.random.default_rng(5).integers(1, WORDS, size=(96, 6)).astype("int32")
    target = (source[:, ::-1] + 3) % WORDS
    shifted = np.concatenate([np.full((96, 1), WORDS), target[:, :-1]], axis=1)
    encoded, decoded = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    _, *state = layers.LSTM(8, return_state=True)(layers.Embedding(WORDS, 8)(encoded))
    features = layers.Embedding(WORDS + 1, 8)(decoded)
    features = layers.LSTM(8, return_sequences=True)(features, initial_state=state)
    model = keras.Model([encoded, decoded], layers.Dense(WORDS, activation="softmax")(features))
    model.compile("rmsprop", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, [source, shifted], target, batch_size=16, epochs=2)


def causal_language_model() -> SpooledRun:
    """The next word; padded targets have weight 0, and the metric sees the weights."""
    x = sentences(length=LENGTH + 1)
    given, following = x[:, :-1], x[:, 1:]
    inputs = keras.Input((LENGTH,), dtype="int32")
    features = layers.Embedding(WORDS, 8)(inputs) + layers.Embedding(LENGTH, 8)(ops.arange(LENGTH))
    attended = layers.MultiHeadAttention(2, 4)(features, features, use_causal_mask=True)
    features = layers.LayerNormalization()(layers.Add()([features, attended]))
    model = keras.Model(inputs, layers.Dense(WORDS)(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, weighted_metrics=["accuracy"])
    weights = (following > 0).astype("float32")
    return watched_fit(model, given, following, sample_weight=weights, batch_size=16, epochs=2)


def masked_language_model() -> SpooledRun:
    """A sixth of the words is hidden; only those count, by their weight."""
    y = np.random.default_rng(6).integers(2, WORDS, size=(96, LENGTH)).astype("int32")
    hidden = np.random.default_rng(7).random(size=y.shape) < 1 / 6
    inputs = keras.Input((LENGTH,), dtype="int32")
    features = transformer_block(layers.Embedding(WORDS, 8)(inputs))
    model = keras.Model(inputs, layers.Dense(WORDS, activation="softmax")(features))
    model.compile("adam", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    weights = hidden.astype("float32")
    return watched_fit(
        model, np.where(hidden, 1, y), y, sample_weight=weights, batch_size=16, epochs=2
    )


def speech_with_ctc() -> SpooledRun:
    """Frames in, a shorter text out."""
    rng = np.random.default_rng(8)
    labels = rng.integers(1, 5, size=(64, 4)).astype("int32")
    frames = np.repeat(np.eye(6, dtype="float32")[labels], 3, axis=1)
    frames += 0.1 * rng.normal(size=frames.shape).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((12, 6)),
            layers.Bidirectional(layers.GRU(8, return_sequences=True)),
            layers.Dense(6),
        ]
    )
    model.compile("adam", keras.losses.CTC())
    return watched_fit(model, frames, labels, batch_size=16, epochs=2)


def bag_of_words() -> SpooledRun:
    """Ids as counts, which is how linear models of text begin."""
    x: Ids = sentences()
    inputs = keras.Input((LENGTH,), dtype="int32")
    counts = layers.CategoryEncoding(WORDS, "count")(inputs)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(counts))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, opinions(x), batch_size=16, epochs=2)


WORKFLOWS = [
    masked_lstm_classifier,
    transformer_classifier,
    masked_tagger,
    tagger_that_ignores_a_class,
    convolutions_over_words,
    translation,
    causal_language_model,
    masked_language_model,
    speech_with_ctc,
    bag_of_words,
]
