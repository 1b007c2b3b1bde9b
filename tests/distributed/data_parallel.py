"""Fits with keras.distribution on one processor that JAX takes for four; told as JSON.

python -m tests.distributed.data_parallel {data,model}
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import keras
import numpy as np
from keras import layers
from tests.distributed.telling import digest, told
from tests.watched import offline_callback, run_of


def rows(count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(4)
    return random.normal(size=(count, 6)).astype("float32"), random.integers(0, 3, count)


def classifier(optimizer: keras.optimizers.Optimizer, *, changing: bool) -> keras.Model:
    """With layers that behave differently in training where `changing` says so."""
    inputs = keras.Input((6,))
    inner = layers.Dense(8, activation="relu", name="wide")(inputs)
    if changing:
        inner = layers.Dropout(0.2)(layers.BatchNormalization()(inner))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(inner))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained(*callbacks: Any) -> dict[str, Any]:
    keras.utils.set_random_seed(3)
    model = classifier(keras.optimizers.Adam(0.01), changing=True)
    x, y = rows(56)
    held_out = (x[40:], y[40:])
    history = model.fit(
        x[:40],
        y[:40],
        batch_size=16,
        epochs=2,
        verbose=0,
        validation_data=held_out,
        callbacks=[*callbacks],
    )
    kept = [*model.variables, *model.optimizer.variables]
    return {"digest": digest(map(np.asarray, kept)), "history": history.history}


def still() -> dict[str, Any]:
    """A fit that moves no weight, so that its evidence can be computed by hand."""
    keras.utils.set_random_seed(3)
    model = classifier(keras.optimizers.SGD(0.0), changing=False)
    x, y = rows(40)
    with tempfile.TemporaryDirectory() as folder:
        callback = offline_callback(folder)
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False, callbacks=[callback])
        run = run_of(callback)
    outputs = np.asarray(model(x))
    return {**told(run), "y": y.tolist(), "outputs": outputs.tolist()}


def distribution(kind: str) -> Any:
    if kind == "data":
        return keras.distribution.DataParallel()
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["wide/kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def main() -> None:
    keras.distribution.set_distribution(distribution(sys.argv[1]))
    found: dict[str, Any] = {
        "devices": len(keras.distribution.list_devices()),
        "plain": trained(),
    }
    if sys.argv[1] == "data":
        found["still"] = still()
    with tempfile.TemporaryDirectory() as folder:
        callback = offline_callback(folder)
        found["watched"] = trained(callback)
        found["watched: run"] = told(run_of(callback))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
