"""What looks like a fault and is none: resting weights, skipped steps, averaged weights."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from tests.healthy.data import kinds, opinions, sentences, table
from tests.watched import watched_fit

from trainsanity.spooled import SpooledRun


def _regression(optimizer, *, rows=96, **fitting) -> SpooledRun:
    x, y = table(rows=rows)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(12, activation="relu")])
    model.add(layers.Dense(1))
    options = {key: fitting.pop(key) for key in ("steps_per_execution",) if key in fitting}
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    return watched_fit(model, x, y[:, None], **{"batch_size": 8, "epochs": 3, **fitting})


def momentum_after_the_rate_is_zero() -> SpooledRun:
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([12], [0.01, 0.0])
    return _regression(keras.optimizers.SGD(rates, momentum=0.9))


def warm_up_from_zero() -> SpooledRun:
    rates = keras.optimizers.schedules.CosineDecay(0.0, 30, warmup_target=0.01, warmup_steps=12)
    return _regression(keras.optimizers.AdamW(rates))


def accumulated_gradients() -> SpooledRun:
    return _regression(keras.optimizers.Adam(0.005, gradient_accumulation_steps=4))


def averaged_weights() -> SpooledRun:
    adam = keras.optimizers.Adam(0.005, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5)
    return _regression(adam)


def average_swapped_in_for_validation() -> SpooledRun:
    adam = keras.optimizers.Adam(0.005, use_ema=True, ema_momentum=0.9)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    return _regression(adam, validation_split=0.2, callbacks=[swap])


def several_steps_at_once() -> SpooledRun:
    return _regression("adam", steps_per_execution=4)


def short_last_batch() -> SpooledRun:
    return _regression("adagrad", rows=83, batch_size=20)


def sorted_and_never_shuffled() -> SpooledRun:
    x, y = table()
    order = np.argsort(y)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return watched_fit(model, x[order], y[order, None], batch_size=8, epochs=3, shuffle=False)


def best_weights_restored() -> SpooledRun:
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=0, min_delta=0.5)
    sgd = keras.optimizers.SGD(0.05, momentum=0.9)
    return _regression(sgd, epochs=6, validation_split=0.2, callbacks=[plateau, stop])


def rows_of_a_table_never_seen() -> SpooledRun:
    """A vocabulary far larger than the data, and clipping by the norm of all gradients."""
    x = sentences()
    model = keras.Sequential(
        [
            keras.Input((10,), dtype="int32"),
            layers.Embedding(500, 8, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    sgd = keras.optimizers.SGD(0.5, global_clipnorm=0.1)
    model.compile(sgd, "binary_crossentropy", metrics=["accuracy"])
    return watched_fit(model, x, opinions(x), batch_size=8, epochs=3)


def pixels_that_are_always_zero() -> SpooledRun:
    x, y = kinds()
    x = np.concatenate([x, np.zeros((len(x), 4), "float32")], axis=1)
    model = keras.Sequential([keras.Input((10,)), layers.Dense(12, activation="relu")])
    model.add(layers.Dense(3, activation="softmax", kernel_constraint="max_norm"))
    model.compile(
        keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return watched_fit(model, x, y, batch_size=8, epochs=3)


def finite_data_cut_in_steps() -> SpooledRun:
    """`steps_per_epoch` on data that repeats, and validation cut by `validation_steps`."""
    import tensorflow as tf

    x, y = table()
    data = tf.data.Dataset.from_tensor_slices((x, y[:, None]))
    train = data.take(72).shuffle(72).repeat().batch(8)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    rest = data.skip(72).batch(8)
    return watched_fit(
        model, train, steps_per_epoch=9, epochs=3, validation_data=rest, validation_steps=3
    )


def fitted_twice() -> list[SpooledRun]:
    """Training goes on in a second call, with what the optimizer has learnt."""
    x, y = table()
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile("adam", "mse")
    first = watched_fit(model, x, y[:, None], batch_size=8, epochs=2)
    return [first, watched_fit(model, x, y[:, None], batch_size=8, initial_epoch=2, epochs=4)]


WORKFLOWS = [
    momentum_after_the_rate_is_zero,
    warm_up_from_zero,
    accumulated_gradients,
    averaged_weights,
    average_swapped_in_for_validation,
    several_steps_at_once,
    short_last_batch,
    sorted_and_never_shuffled,
    best_weights_restored,
    rows_of_a_table_never_seen,
    pixels_that_are_always_zero,
    finite_data_cut_in_steps,
    fitted_twice,
]
