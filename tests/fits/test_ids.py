"""Ids of an embedding that are numbers of floating point."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import watched_fit

IDS = np.random.default_rng(0).integers(0, 20, (48, 5)).astype("float32")


@pytest.mark.parametrize("is_scaled", [True, False])
def test_ids_that_were_scaled_are_told_and_whole_ones_left_alone(is_scaled: bool) -> None:
    inputs = keras.Input((5,))
    words = layers.Flatten()(layers.Embedding(20, 4, name="words")(inputs))
    model = keras.Model(inputs, layers.Dense(1)(words))
    model.compile("adam", "mse")
    ids = IDS / 20 if is_scaled else IDS
    run = watched_fit(model, ids, IDS[:, :1] / 20, batch_size=8)
    measured = run.signal("embedding:words/not_whole")[1]
    assert len(measured) == 6
    assert measured.mean() == pytest.approx(np.mean(ids != np.floor(ids)), rel=1e-5)
    found = [(rule.id, f.subject) for rule, f in run.judge().at_least("warning")]
    assert found == ([("index-range", "words: whole numbers")] if is_scaled else [])
