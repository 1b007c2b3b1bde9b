"""Memory of the process and of the device, and the variables that are alive."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

import keras
import psutil

from trainsanity.probes.probe import Probe

MIB = 1024.0 * 1024.0
COUNTING_SHARE = 0.002  # of the time so far that counting variables may take


class Memory(Probe):
    """Resident and device memory every second or so; Keras variables alive at epoch ends."""

    name = "memory"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._process = psutil.Process()
        self._last_step = 0
        self._counted_at = 0
        self._epochs = 0
        self._began = time.monotonic()
        self._spent = 0.0

    def on_sample_time(self) -> None:
        # One sample a step: steps of a signal must increase.
        if self.run.step <= self._last_step:
            return
        self._last_step = self.run.step
        readings = {"memory/rss": self._process.memory_info().rss / MIB}
        device = self.run.backend.device_memory()
        if device is not None:
            readings["memory/device"] = device / MIB
        self.run.points(self.run.step, readings)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self._epochs += 1
        is_dear = self._spent > 0.2 + COUNTING_SHARE * (now - self._began)
        # However dear: after 1, 2, 4, 8 ... epochs and one later, so that growth can be told.
        is_time = any(n & (n - 1) == 0 for n in (self._epochs, self._epochs - 1))
        if (is_dear and not is_time) or self.run.step <= self._counted_at:
            return
        self._counted_at = self.run.step
        self.run.points(self.run.step, {"memory/live_variables": float(_live_variables())})
        self._spent += time.monotonic() - now


def _live_variables() -> int:
    """Keras keeps no list of its variables; the garbage collector knows all objects."""
    kinds: dict[type, bool] = {}
    count = 0
    for found in gc.get_objects():
        kind = type(found)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, keras.Variable)
        count += kinds[kind]
    return count
