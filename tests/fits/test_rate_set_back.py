"""Two callbacks that set one learning rate."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import offline_callback, run_of

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")


@pytest.mark.parametrize("with_schedule", [True, False])
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_reduction_undone_by_a_schedule_is_told(
    with_schedule: bool, ours_first: bool, tmp_path: Path
) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    plateau = keras.callbacks.ReduceLROnPlateau("loss", min_delta=100, patience=1, factor=0.1)
    constant = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01)
    others = [plateau, constant] if with_schedule else [plateau]
    ours = offline_callback(tmp_path)
    callbacks = [ours, *others] if ours_first else [*others, ours]
    model.fit(X, X[:, :1], batch_size=8, epochs=4, verbose=0, callbacks=callbacks)
    found = {f.subject for _, f in run_of(ours).judge().at_least("warning")}
    told = {"ReduceLROnPlateau: the learning rate set back"} if with_schedule else set()
    assert found == told
