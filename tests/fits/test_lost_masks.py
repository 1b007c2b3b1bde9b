"""A mask that is lost inside a subclassed model, and the twin that keeps it."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import watched_fit

import trainsanity

IDS = np.random.default_rng(0).integers(1, 20, (32, 8))
IDS[::2, 3:] = IDS[:, 6:] = 0

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="the flow of masks is looked at outside the step"
)


class Tagger(keras.Model):
    def __init__(self, *, keeps_mask: bool) -> None:
        super().__init__()
        self.words = layers.Embedding(20, 8, mask_zero=True)
        self.deep, self.tags = layers.Dense(8), layers.Dense(4, activation="softmax")
        self.add = layers.Add() if keeps_mask else None

    def call(self, ids: Any) -> Any:
        words = self.words(ids)
        if self.add is not None:
            return self.tags(self.add([words, self.deep(words)]))
        return self.tags(words + self.deep(words))


@pytest.mark.parametrize("keeps_mask", [False, True])
def test_names_the_operator_in_the_code_at_which_a_mask_is_lost(keeps_mask: bool) -> None:
    model = Tagger(keeps_mask=keeps_mask)
    model.compile("sgd", "sparse_categorical_crossentropy")
    run = watched_fit(model, IDS, IDS % 4, batch_size=8)
    found = [f for rule, f in run.judge().at_least("warning")]
    if keeps_mask:
        assert not found
        return
    named = {f.subject: f for f in found}["words + self.deep(words)"]
    assert re.search(r"\(operator `\+`, .*test_lost_masks\.py:\d+\)", named.message)
    assert "Add()([x, y])" in named.suggestion


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="a fault of torch")
@pytest.mark.parametrize("masked", [True, False])
def test_the_gradient_of_attention_over_padding_is_wrong_on_torch(masked: bool) -> None:
    """Of rows in which everything is masked, which count where the mask is lost behind them."""
    keras.utils.set_random_seed(1)
    ids = keras.Input((8,), dtype="int32")
    words = layers.Embedding(20, 8, mask_zero=masked)(ids)
    joined = layers.Add()([words, layers.MultiHeadAttention(2, 4)(words, words)])
    model = keras.Model(ids, layers.Dense(4, activation="softmax")(joined))
    model.compile("sgd", "sparse_categorical_crossentropy")
    found = trainsanity.audit(model, IDS, IDS % 4).judgement.of("gradient-mismatch")
    assert ("value" in {f.subject for f in found}) is masked
