"""Fits on two copies of a model, on one processor that TensorFlow takes for two; told as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tests.distributed.telling import digest, told
from tests.watched import offline_callback, run_of

DEVICES = ["CPU:0", "CPU:1"]


def sentences(rows: int) -> tuple[Any, Any]:
    """Ids padded with 0, in rows of different lengths, and a class for each."""
    random = np.random.default_rng(4)
    x = random.integers(1, 20, size=(rows, 6))
    for row, end in zip(x, random.integers(2, 7, size=rows), strict=True):
        row[end:] = 0
    return x, np.where(x > 0, x % 4, 0)


def tagger(optimizer: keras.optimizers.Optimizer, *, changing: bool) -> keras.Model:
    """With layers that behave differently in training where `changing` says so."""
    ids = keras.Input((6,), dtype="int32")
    inner = layers.Dense(8, activation="relu")(layers.Embedding(20, 8, mask_zero=True)(ids))
    if changing:
        inner = layers.Dropout(0.2)(layers.BatchNormalization()(inner))
    model = keras.Model(ids, layers.Dense(4, activation="softmax")(inner))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained(strategy: Any, *callbacks: Any, inside: bool) -> dict[str, Any]:
    """What a fit from one seed leaves; the last batch is shorter. `inside` fits in the scope."""
    keras.utils.set_random_seed(3)
    x, y = sentences(21)
    data = (x[:8], y[:8])

    def fit() -> Any:
        return model.fit(
            x, y, batch_size=8, epochs=2, verbose=0, callbacks=[*callbacks], validation_data=data
        )

    with strategy.scope():
        model = tagger(keras.optimizers.Adam(0.01), changing=True)
        history = fit() if inside else None
    history = history or fit()
    copies = [
        np.asarray(copy)
        for v in model.variables
        for copy in strategy.experimental_local_results(v.value)
    ]
    return {"digest": digest([*copies, *model.optimizer.variables]), "history": history.history}


def still(strategy: Any) -> dict[str, Any]:
    """A fit that moves no weight, so that its evidence can be computed by hand."""
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = tagger(keras.optimizers.SGD(0.0), changing=False)
    x, y = sentences(17)
    with tempfile.TemporaryDirectory() as folder:
        callback = offline_callback(folder)
        history = model.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=[callback])
        run = run_of(callback)
    outputs = keras.Model(model.inputs, model.outputs)(x)
    return {
        **told(run),
        "x": x.tolist(),
        "y": y.tolist(),
        "outputs": np.asarray(outputs).tolist(),
        "history": history.history,
    }


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # One for all: two of the same devices would take each other's messages for their own.
    strategy = tf.distribute.MirroredStrategy(DEVICES)
    found: dict[str, Any] = {"still": still(strategy), "plain": trained(strategy, inside=False)}
    with tempfile.TemporaryDirectory() as folder:
        for name, inside in (("watched", False), ("watched in the scope", True)):
            callback = offline_callback(folder)
            found[name] = trained(strategy, callback, inside=inside)
            found[f"{name}: run"] = told(run_of(callback))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
