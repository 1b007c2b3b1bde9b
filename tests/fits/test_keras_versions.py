"""The lowest and the newest version of Keras that are said to be supported, and what lies below."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from tests.watched import offline_callback

from trainsanity.keras_versions import NEWEST_KERAS, minor_version


def test_tests_run_on_the_version_that_is_named() -> None:
    """`make test` names the lowest version for the tests that it runs on that one."""
    named = os.environ.get("KERAS_UNDER_TEST", ".".join(map(str, NEWEST_KERAS)))
    assert minor_version(keras.__version__) == minor_version(named)


def test_says_that_an_older_version_is_not_watched_and_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keras, "__version__", "3.6.0")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = offline_callback(tmp_path)
    x, y = np.zeros((4, 2), "float32"), np.ones((4, 1), "float32")
    with caplog.at_level(logging.WARNING, logger="trainsanity"):
        history = model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0, callbacks=[callback])
        model.evaluate(x, y, verbose=0, callbacks=[callback])
    assert len(history.history["loss"]) == 2
    assert "Keras 3.7 or newer is needed" in caplog.text
    assert not list(tmp_path.glob("*.spool"))
