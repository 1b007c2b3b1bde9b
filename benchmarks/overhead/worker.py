"""One process that trains on request and times its steps; `callback_overhead.py` talks to it.

Reads one word a line, "none" or "subject": a fit without or with the callback. Answers each with
one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import keras
import numpy as np
from models import MODELS
from subjects import SUBJECTS, none


class Timer(keras.callbacks.Callback):
    """Times the later half of the epochs: the first one compiles.

    Its own batch hook must not make Keras wait for the device, so it may run asynchronously.
    Between the hooks of an epoch's begin and its first batch Keras opens the data anew, for which
    TensorFlow takes four seconds at times, whoever watches: that is not counted.
    """

    async_safe = True

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.seconds = 0.0
        self.processor_seconds = 0.0
        self.steps: list[float] = []
        self._epochs = epochs
        self._ends: list[float] = []
        self._began = self._used = 0.0
        self.hooked = _now()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._ends = []
        self._began, self._used = _now()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            began, used = _now()
            self._began += began - self.hooked[0]
            self._used += used - self.hooked[1]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ends.append(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # Keras has read the logs from the device, so every step of the epoch has ended.
        ended, used = _now()
        if epoch >= self._epochs // 2:
            self.seconds += ended - self._began
            self.processor_seconds += used - self._used
            self.steps += np.diff(np.sort(self._ends)).tolist()


class Hooked(keras.callbacks.Callback):
    """Comes last, and tells a timer when all hooks of an epoch's begin have run."""

    async_safe = True

    def __init__(self, timer: Timer) -> None:
        super().__init__()
        self._timer = timer

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._timer.hooked = _now()


def _now() -> tuple[float, float]:
    """Seconds, and those of all processors."""
    return time.perf_counter(), time.process_time()


class HookTimer:
    """Times the host's time in a callback's batch hooks, in seconds."""

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self.seconds: list[float] = []
        for name in ("on_train_batch_begin", "on_train_batch_end"):
            setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, hook: Any) -> Any:
        def timed(batch: int, logs: Any = None) -> None:
            began = time.perf_counter()
            hook(batch, logs)
            self.seconds.append(time.perf_counter() - began)

        return timed


def fit(
    model: keras.Model, data: list[Any], size: int, epochs: int, callbacks: list[Any]
) -> dict[str, float]:
    """Trains on batches of this size and gives times of the later half of the epochs, in
    microseconds.
    """
    timer = Timer(epochs)
    hooks = [HookTimer(callback) for callback in callbacks]
    watched = [timer, *callbacks, Hooked(timer)]
    model.fit(*data, batch_size=size, epochs=epochs, verbose=0, shuffle=False, callbacks=watched)
    batches = (epochs - epochs // 2) * (len(data[0]) // size)
    times = {
        "mean": timer.seconds / batches * 1e6,
        "processor": timer.processor_seconds / batches * 1e6,
        "fast": float(np.quantile(timer.steps, 0.1)) * 1e6,
        "median": float(np.median(timer.steps)) * 1e6,
        "p99": float(np.quantile(timer.steps, 0.99)) * 1e6,
    }
    if hooks:
        # Two hooks a batch.
        timed = [s for hook in hooks for s in hook.seconds[-2 * batches :]]
        times["hook_p99"] = float(np.quantile(timed, 0.99)) * 1e6
    return times


def main() -> None:
    subject, model_name = sys.argv[1:3]
    batches, size, epochs = map(int, sys.argv[3:])
    # Libraries print what they like; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    keras.utils.set_random_seed(0)
    model, *data = MODELS[model_name](batches * size)
    print(
        json.dumps({"keras": keras.__version__, "backend": keras.backend.backend()}), file=answers
    )
    for line in sys.stdin:
        with (none if line.strip() == "none" else SUBJECTS[subject])() as callbacks:
            times = fit(model, data, size, epochs, callbacks)
        print(json.dumps(times), file=answers)


if __name__ == "__main__":
    main()
