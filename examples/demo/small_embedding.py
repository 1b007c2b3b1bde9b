"""The tagger after its vocabulary grew: the embedding was left at 50 rows.

On a plain CPU Keras would raise. Compiled with XLA, as on every accelerator, ids beyond the table
read its last row, and nothing is said.
"""

import keras
import python_tokens
from keras import layers

from trainsanity import SanityCallback

ids, classes = python_tokens.load()

tokens = keras.Input((python_tokens.LENGTH,), dtype="int32", name="tokens")
x = layers.Embedding(50, 32, mask_zero=True, name="embedding")(tokens)
y = layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="context")(x)
x = layers.Add(name="residual")([x, y])
classified = layers.Dense(len(python_tokens.CLASSES), activation="softmax", name="class")(x)
model = keras.Model(tokens, classified, name="tagger")

model.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    jit_compile=True,
)
model.fit(
    ids,
    classes,
    batch_size=128,
    epochs=2,
    verbose=2,
    callbacks=[SanityCallback(project="demo", run_name="embedding left at 50 rows")],
)
