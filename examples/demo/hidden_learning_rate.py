"""The tagger with a learning rate lowered after every epoch, and words that weigh differently.

Two things do not happen. The compiled step has read the Python number once, so lowering it changes
what Keras shows and not what it uses. And `metrics=` ignores the weights: only `weighted_metrics=`
takes them.
"""

import keras
import numpy as np
import python_tokens
from keras import layers

from trainsanity import SanityCallback

ids, classes = python_tokens.load()
# The class of a known word can be looked up: what counts is to tell those of unknown words.
weights = np.where(ids > python_tokens.UNKNOWN, 0.1, 1.0)

tokens = keras.Input((python_tokens.LENGTH,), dtype="int32", name="tokens")
x = layers.Embedding(python_tokens.IDS, 32, mask_zero=True, name="embedding")(tokens)
y = layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="context")(x)
x = layers.Add(name="residual")([x, y])
classified = layers.Dense(len(python_tokens.CLASSES), activation="softmax", name="class")(x)
model = keras.Model(tokens, classified, name="tagger")

rate = 3e-3


def current_rate():
    return rate


def lower_the_rate(epoch, logs):
    global rate
    rate /= 4
    print(f"learning rate is now {float(model.optimizer.learning_rate):.6f}")


model.compile(
    optimizer=keras.optimizers.Adam(learning_rate=current_rate),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(
    ids,
    classes,
    sample_weight=weights,
    batch_size=128,
    epochs=3,
    verbose=2,
    callbacks=[
        keras.callbacks.LambdaCallback(on_epoch_end=lower_the_rate),
        SanityCallback(project="demo", run_name="learning rate and weights not used"),
    ],
)
