"""Series in time: forecasts, stateful and masked ones, films."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from tests.healthy.data import waves
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


def lstm_forecast() -> SpooledRun:
    """Windows of one series, in their order and never shuffled."""
    x, y = waves(columns=2)
    model = keras.Sequential([keras.Input((10, 2)), layers.LSTM(8), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return watched_fit(model, x, y[:, -1], batch_size=16, epochs=2, shuffle=False)


def causal_convolutions() -> SpooledRun:
    x, y = waves()
    model = keras.Sequential([keras.Input((None, 1))])
    for dilation in (1, 2, 4):
        layer = layers.Conv1D(8, 2, padding="causal", dilation_rate=dilation, activation="relu")
        model.add(layer)
    model.add(layers.Conv1D(1, 1))
    model.compile("adam", "mae")
    return watched_fit(model, x, y[..., None], batch_size=16, epochs=2)


def stateful_rnn() -> SpooledRun:
    """Each batch goes on where the one before ended; states are reset between epochs."""
    x, y = waves(rows=64)

    class ResetStates(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[0].reset_states()

    inputs = keras.Input(batch_shape=(16, 10, 1))
    model = keras.Sequential([inputs, layers.GRU(6, stateful=True), layers.Dense(1)])
    model.compile("adam", "mse")
    return watched_fit(
        model, x, y[:, -1], batch_size=16, epochs=2, shuffle=False, callbacks=[ResetStates()]
    )


def masked_series() -> SpooledRun:
    """Of different lengths; each step has its own target."""
    x, y = waves(columns=2)
    x[np.arange(10) >= np.random.default_rng(1).integers(4, 11, size=(96, 1))] = -1.0
    inputs = keras.Input((10, 2))
    features = layers.GRU(8, return_sequences=True)(layers.Masking(-1.0)(inputs))
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(1))(features))
    model.compile("adam", "mse", metrics=["mae"])
    return watched_fit(model, x, y[..., None], batch_size=16, epochs=2)


def film_of_squares() -> SpooledRun:
    """ConvLSTM, the next frame."""
    at = np.random.default_rng(2).integers(0, 6, size=48)
    films = np.zeros((48, 5, 6, 6, 1), "float32")
    for film, begin in zip(films, at, strict=True):
        for time, frame in enumerate(film):
            frame[:, (begin + time) % 6] = 1.0
    inputs = keras.Input((None, 6, 6, 1))
    features = layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True)(inputs)
    outputs = layers.Conv3D(1, 3, padding="same", activation="sigmoid")(features)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "binary_crossentropy")
    return watched_fit(model, films[:, :-1], films[:, 1:], batch_size=16, epochs=1)


def windows_from_a_pipeline() -> SpooledRun:
    series = np.sin(np.arange(140) / 5).astype("float32") + np.linspace(0, 1, 140, dtype="float32")
    data = keras.utils.timeseries_dataset_from_array(
        series[:-8, None], series[8:], sequence_length=8, batch_size=16, shuffle=True, seed=1
    )
    model = keras.Sequential([keras.Input((8, 1)), layers.Flatten(), layers.Dense(8, "relu")])
    model.add(layers.Dense(1))
    model.compile("adam", "mse")
    return watched_fit(model, data, epochs=3)


def anomaly_autoencoder() -> SpooledRun:
    x, _ = waves(length=12)
    model = keras.Sequential(
        [
            keras.Input((12, 1)),
            layers.Conv1D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Dropout(0.2),
            layers.Conv1DTranspose(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv1DTranspose(1, 3, padding="same"),
        ]
    )
    model.compile("adam", "mse")
    stop = keras.callbacks.EarlyStopping(patience=2, mode="min")
    return watched_fit(model, x, x, batch_size=16, epochs=3, validation_split=0.1, callbacks=[stop])


WORKFLOWS = [
    lstm_forecast,
    causal_convolutions,
    stateful_rnn,
    masked_series,
    film_of_squares,
    windows_from_a_pipeline,
    anomaly_autoencoder,
]
