"""The tagger with a learning rate lowered after every epoch, and classes that weigh differently.

Two things do not happen. The compiled step has read the Python number once, so lowering it changes
what Keras shows and not what it uses. And `metrics=` ignores the weights: only `weighted_metrics=`
takes them.
"""

import keras
import numpy as np
import python_tokens
from keras import layers

from trainsanity import SanityCallback

keras.utils.set_random_seed(7)
ids, classes = python_tokens.load()
# Operators and keywords are known by their text: what counts is to tell the other classes apart.
weight_of = {"padding": 0, "keyword": 0.1, "operator": 0.1, "comment": 3, "string": 3, "number": 3}
weights = np.array([weight_of.get(name, 1) for name in python_tokens.CLASSES], "float32")

tokens = keras.Input((python_tokens.LENGTH,), dtype="int32", name="tokens")
x = layers.Embedding(python_tokens.IDS, 32, mask_zero=True, name="embedding")(tokens)
y = layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="context")(x)
x = layers.Add(name="residual")([x, y])
classified = layers.Dense(len(python_tokens.CLASSES), activation="softmax", name="class")(x)
model = keras.Model(tokens, classified, name="tagger")

rate = 3e-3


def lower_the_rate(epoch, logs):
    global rate
    rate /= 4
    print(f"learning rate is now {float(model.optimizer.learning_rate):.6f}")


model.compile(
    optimizer=keras.optimizers.Adam(learning_rate=lambda: rate),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(
    ids,
    classes,
    sample_weight=weights[classes],
    batch_size=128,
    epochs=3,
    verbose=2,
    callbacks=[
        keras.callbacks.LambdaCallback(on_epoch_end=lower_the_rate),
        SanityCallback(project="demo", run_name="learning rate and weights not used"),
    ],
)
