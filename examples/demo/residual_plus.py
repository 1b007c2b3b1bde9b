"""A tagger for Python tokens whose residual connection is written `x + y`.

Keras' `+` on two masked tensors gives a tensor without a mask, and says nothing: from there on
padding counts as if it were code, in the loss and in the accuracy.
"""

import keras
import python_tokens
from keras import layers

from trainsanity import SanityCallback

ids, classes = python_tokens.load()

tokens = keras.Input((python_tokens.LENGTH,), dtype="int32", name="tokens")
x = layers.Embedding(python_tokens.IDS, 32, mask_zero=True, name="embedding")(tokens)
y = layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="context")(x)
x = x + y
classified = layers.Dense(len(python_tokens.CLASSES), activation="softmax", name="class")(x)
model = keras.Model(tokens, classified, name="tagger")

model.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(
    ids,
    classes,
    batch_size=128,
    epochs=2,
    verbose=2,
    callbacks=[SanityCallback(project="demo", run_name="residual written x + y")],
)
