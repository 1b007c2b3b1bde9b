"""One of two processes that train together by torch's DistributedDataParallel; told as JSON.

python -m tests.distributed.ddp RANK STORE
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from tests.distributed.telling import digest, told
from tests.watched import offline_callback, run_of
from torch.nn.parallel import DistributedDataParallel

from trainsanity import link

RANKS = 2


def share(rank: int) -> tuple[Any, Any]:
    """Every second row."""
    random = np.random.default_rng(4)
    x, y = random.normal(size=(40, 6)).astype("float32"), random.integers(0, 3, 40)
    return x[rank::RANKS], y[rank::RANKS]


def inner_model(rate: float = 0.2) -> keras.Model:
    inputs = keras.Input((6,))
    hidden = layers.Dropout(rate)(layers.Dense(8, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))


class Shared(keras.Model):
    """A model whose step goes through DistributedDataParallel, which averages the gradients."""

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.inner = inner_model(rate)
        self.parallel = [DistributedDataParallel(self.inner)]  # in a list: no part of the model

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.inner(x, training=training)

    def train_step(self, data: Any) -> Any:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()
        y_pred = self.parallel[0](x, training=True)
        loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight)
        self._loss_tracker.update_state(loss, sample_weight=x.shape[0])
        loss.backward()
        weights = self.trainable_weights[:]
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, weights)
        return self.compute_metrics(x, y, y_pred, weight)


def fitted(rank: int, *callbacks: Any) -> dict[str, Any]:
    """A fit, with validation in the first process only."""
    keras.utils.set_random_seed(3)
    model = Shared()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = share(rank)
    given: Any = {"validation_data": (-x, y)} if rank == 0 else {}
    history = model.fit(
        x, y, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=[*callbacks], **given
    )
    kept = [keras.ops.convert_to_numpy(v) for v in (*model.weights, *model.optimizer.variables)]
    return {"digest": digest(kept), "history": history.history}


def still(rank: int, callback: Any) -> dict[str, Any]:
    """A fit that moves no weight, and an evaluation, so that sums can be computed by hand. The last
    batches of the processes have different sizes, and validation as many batches as it likes.
    """
    keras.utils.set_random_seed(3)
    model = Shared(rate=0.0)
    metrics: Any = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", **metrics)
    x, y = (part[: 20 - 2 * rank] for part in share(rank))
    weight = np.linspace(0.5, 2.0, len(x)).astype("float32")
    given: Any = {"sample_weight": weight, "batch_size": 8, "verbose": 0, "callbacks": [callback]}
    validated = 20 - 13 * rank
    validation = tuple(part[:validated] for part in (x, y, weight))
    model.fit(x, y, epochs=2, shuffle=False, validation_data=validation, **given)
    found = {"run": told(run_of(callback)) if rank == 0 else None}
    model.evaluate(x, y, **given)
    found["evaluated"] = told(run_of(callback)) if rank == 0 else None
    outputs = keras.ops.convert_to_numpy(model(x))
    return {
        **found,
        "y": y.tolist(),
        "weight": weight.tolist(),
        "outputs": outputs.tolist(),
        "validated": validated,
    }


def looped(rank: int, *callbacks: Any) -> str:
    """The loop of the guide "Multi-GPU distributed training with PyTorch" on keras.io."""
    keras.utils.set_random_seed(3)
    model = inner_model()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    told = keras.callbacks.CallbackList([*callbacks], model=model)
    x, y = (torch.from_numpy(part) for part in share(rank))
    told.on_train_begin()
    for epoch in range(2):
        told.on_epoch_begin(epoch)
        loss = torch.nn.functional.nll_loss(torch.log(parallel(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.on_epoch_end(epoch, {"loss": float(loss)})
    told.on_train_end()
    return digest(keras.ops.convert_to_numpy(w) for w in model.weights)


class Alarmed(keras.callbacks.Callback):
    """After the first batch the server tells the callback of a critical alert."""

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self._callback = callback

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        facts = {
            "severity": "critical",
            "rule": "mask-not-applied",
            "title": "masks",
            "message": "",
        }
        self._callback._session._hear({"id": "1", "state": "open", **facts})


def main() -> None:
    rank, store = int(sys.argv[1]), Path(sys.argv[2])
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("trainsanity").addHandler(handler)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS
    )
    link.PATIENCE_SECONDS = link.KNOWN_SECONDS = 120.0  # however busy the machine is
    spools = store.parent / f"spools {rank}"
    callback = offline_callback(spools)
    found: dict[str, Any] = {"plain": fitted(rank), "watched": fitted(rank, callback)}
    found["run"] = told(run_of(callback)) if rank == 0 else None
    own = offline_callback(spools)
    found["loop"], found["watched loop"] = looped(rank), looped(rank, own)
    found["spools"] = len(list(spools.glob("*.spool")))
    found["still"] = still(rank, offline_callback(spools))
    link.PATIENCE_SECONDS = 0.1  # for those who will never speak
    unasked = offline_callback(spools)
    found["unasked"] = fitted(rank, *([unasked] if rank == 1 else []))
    alone = offline_callback(spools)
    found["alone"] = fitted(rank, *([alone] if rank == 0 else []))
    found["run alone"] = told(run_of(alone)) if rank == 0 else None
    found["said"] = said.copy()
    stops = offline_callback(spools, on_alert="stop")
    found["alarmed"] = fitted(rank, stops, *([Alarmed(stops)] if rank == 0 else []))
    found["said when alarmed"] = said[len(found["said"]) :]
    torch.distributed.destroy_process_group()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
