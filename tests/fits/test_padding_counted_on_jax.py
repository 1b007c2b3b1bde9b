"""On JAX, Keras 3.15 strips the mask before training metrics: padding counts as success. That
hides nothing else.
"""

from __future__ import annotations

import keras
from keras import layers
from tests.watched import watched_fit
from tests.zoo.bugs.mask_from_predictions import AllWords, MostConfident
from tests.zoo.data import sentences

from trainsanity.spooled import SpooledRun


def tagged(*, padded: bool) -> SpooledRun:
    keras.utils.set_random_seed(7)
    ids, tags = sentences()
    if not padded:
        ids, tags = ids.clip(1), tags.clip(1)
    words = layers.Embedding(20, 8, mask_zero=True)
    head = layers.Dense(4, activation="softmax")
    model = keras.Sequential([keras.Input((8,), dtype="int32"), words, head])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, ids, tags, epochs=2, batch_size=8)


def masked_by(layer: keras.Layer) -> SpooledRun:
    keras.utils.set_random_seed(7)
    ids = keras.Input((8,), dtype="int32")
    words = layers.Embedding(20, 8, mask_zero=True)(ids)
    model = keras.Model(ids, layer(layers.Dense(4, activation="softmax")(words)))
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return watched_fit(model, *sentences(), epochs=6, batch_size=4)


if keras.backend.backend() == "jax":

    def test_says_that_padding_counts_and_shows_the_honest_number() -> None:
        judgement = tagged(padded=True).judge()
        found = judgement.at_least("warning")
        assert {(rule.id, f.subject) for rule, f in found} == {
            ("mask-coverage-mismatch", "training metrics")
        }
        shown, honest = (witness.value for witness in found[-1][1].witnesses[:2])
        assert shown < honest, "padding is no right answer here"
        assert f"Keras {keras.__version__} on JAX" in found[-1][1].title

    def test_is_silent_where_nothing_is_padded() -> None:
        assert not tagged(padded=False).judge().at_least("warning")

    def test_says_beside_it_that_a_mask_was_made_from_predictions() -> None:
        found = masked_by(MostConfident()).judge().at_least("warning")
        assert {f.subject for _, f in found} == {"training metrics", "most_confident"}
        found = masked_by(AllWords()).judge().at_least("warning")
        assert {f.subject for _, f in found} == {"training metrics"}
