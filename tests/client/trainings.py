"""Trains once for each server it is told of, each time in a process of its own: a fork, made before
the backend has done anything.

    python tests/client/trainings.py FOLDER '{"refused": ["http://127.0.0.1:9", 1.0]}' 2

Each server comes with the seconds that the end of its training may take. The training named "plain"
has no callback. Each writes FOLDER/<name>.json; so many run at once; the exit statuses of all are
printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainsanity import SanityCallback
from trainsanity.spool_writer import SpoolWriter

EPOCHS, BATCHES, ROWS = 2, 2, 8


class Progress(keras.callbacks.Callback):
    """What has been trained, and when the last batch had been."""

    batches, ended = 0, 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        self.ended = time.perf_counter()


def model_of_all_trainings() -> keras.Model:
    keras.utils.set_random_seed(21)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=True)
    return model


def digest(model: keras.Model, history: dict[str, Any]) -> str:
    """Of weights, seeds, the optimizer's state and the history."""
    found = hashlib.sha256(json.dumps(history, sort_keys=True).encode())
    for variable in (*model.variables, *model.optimizer.variables):
        found.update(keras.ops.convert_to_numpy(variable).tobytes())
    return found.hexdigest()


def note_calls_of_the_network(calling: set[str]) -> None:
    """Adds the name of every thread of this process that opens a connection or looks up a name."""

    def hear(event: str, _: Any) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            calling.add(threading.current_thread().name)

    sys.addaudithook(hear)


def note_waiting(progress: Progress, waits: list[Any]) -> None:
    """Notes of every moment at which training waits for the threads of ours: batches trained by
    then, and the seconds that it would wait at most.
    """
    join = SpoolWriter.join

    def noted(writer: SpoolWriter, timeout: float | None = None) -> None:
        waits.append((progress.batches, timeout))
        join(writer, timeout)

    SpoolWriter.join = noted


def train(name: str, url: str, close_seconds: float, folder: Path) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(BATCHES * ROWS, 4)).astype("float32")
    y = rng.integers(0, 3, size=len(x))
    progress, calling, waits = Progress(), set[str](), list[Any]()
    note_calls_of_the_network(calling)
    note_waiting(progress, waits)
    callbacks: list[Any] = [progress]
    spools = folder / f"{name} spools"
    if name != "plain":
        options = {"spool_dir": spools, "close_timeout": close_seconds, "verbose": False}
        callbacks.append(SanityCallback(url, **options))
    model = model_of_all_trainings()
    began = time.perf_counter()
    history = model.fit(
        x, y, batch_size=ROWS, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=callbacks
    ).history
    facts = {
        "digest": digest(model, history),
        "batches": EPOCHS * BATCHES,
        "close_timeout": close_seconds,
        "calling": sorted(calling),
        "waits": waits,
        "spools": len([*spools.glob("*.spool")]),
        "trained": progress.ended - began,
        "ended": time.perf_counter() - progress.ended,
    }
    (folder / f"{name}.json").write_text(json.dumps(facts))


def main() -> None:
    folder, servers, at_once = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    waiting, running, statuses = [*servers], {}, {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                train(name, *servers[name], folder)
                return  # through the end of the interpreter, as every script
            running[pid] = name
        pid, status = os.wait()
        statuses[running.pop(pid)] = os.waitstatus_to_exitcode(status)
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
