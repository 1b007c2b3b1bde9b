"""Masked steps come out as zeros although `zero_output_for_mask` is off."""

import keras
from keras import ops
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import sentences


class Zeroing(keras.layers.GRU):
    def call(self, sequences, mask=None, training=False, initial_state=None):
        out = super().call(sequences, mask=mask, training=training, initial_state=initial_state)
        return out if mask is None else out * ops.cast(mask, out.dtype)[..., None]


def _fit(kind):
    ids, tags = sentences()
    words = keras.layers.Embedding(20, 8, mask_zero=True)
    layers = [keras.Input((8,), dtype="int32"), words, kind(4, return_sequences=True, name="rnn")]
    model = keras.Sequential([*layers, keras.layers.Dense(4, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return watched_fit(model, ids, tags, epochs=2, batch_size=8)


def faulty():
    return _fit(Zeroing)


def healthy():
    return _fit(keras.layers.GRU)


CASE = Case(
    bugs=("51",),
    title="A recurrent layer zeroes masked steps against its flag",
    rule="mask-semantics",
    subject="*rnn*",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
)
