"""A mask that is lost before a layer that would use it, in models of one answer for a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from tests.watched import watched_fit

IDS = np.random.default_rng(0).integers(1, 20, (32, 8))
IDS[::2, 3:] = IDS[:, 6:] = 0

Last = Callable[[Any], Any]


def attended(x: Any) -> Any:
    return layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 4)(x, x))


LAST: dict[str, Last] = {
    "LSTM": lambda x: layers.LSTM(4)(x),
    "pooling": lambda x: layers.GlobalAveragePooling1D()(x),
    "attention": attended,
    "bidirectional": lambda x: layers.Bidirectional(layers.GRU(4))(x),
}


def judged(words: Any, ids: Any, last: Last, **options: Any) -> list[tuple[str, str]]:
    model = keras.Model(ids, layers.Dense(3, activation="softmax")(last(words)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    run = watched_fit(model, IDS, IDS[:, 0] % 3, batch_size=8, **options)
    assert run.audits("probe_failed") == []
    return [(rule.id, f.subject) for rule, f in run.judge().at_least("warning")]


def parts() -> tuple[Any, Any, Any]:
    ids = keras.Input((8,), dtype="int32")
    words = layers.Embedding(20, 8, mask_zero=True)(ids)
    return ids, words, layers.Dense(8)(words)


@pytest.mark.parametrize("last", LAST)
def test_an_operator_before_a_layer_that_takes_the_mask_is_named(last: str) -> None:
    ids, words, deep = parts()
    ((rule, subject),) = judged(words + deep, ids, LAST[last])
    assert rule == "mask-semantics"
    assert subject.startswith("mask lost at add")


@pytest.mark.parametrize("last", LAST)
def test_the_layer_in_its_place_is_left_alone(last: str) -> None:
    ids, words, deep = parts()
    assert not judged(layers.Add()([words, deep]), ids, LAST[last])


def test_who_multiplies_by_the_mask_takes_care_of_it() -> None:
    ids, words, deep = parts()
    real = ops.expand_dims(ops.cast(ops.not_equal(ids, 0), "float32"), -1)
    assert not judged((words + deep) * real, ids, LAST["LSTM"])


def test_who_gives_the_mask_by_hand_has_not_lost_it() -> None:
    ids, words, deep = parts()
    by_hand = layers.LSTM(4)(words + deep, mask=ops.not_equal(ids, 0))
    assert not judged(by_hand, ids, lambda x: x)


def test_a_layer_that_takes_no_mask_may_do_without() -> None:
    ids, words, deep = parts()
    assert not judged(words + deep, ids, lambda x: layers.GlobalMaxPooling1D()(x))
