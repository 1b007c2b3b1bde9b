"""Memory of the process and of the device."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

import keras
import psutil

from trainsanity.probes.probe import Probe

MIB = 1024.0 * 1024.0


class Memory(Probe):
    """Resident memory, device memory, and traces of the train function, every second or so."""

    name = "memory"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._process = psutil.Process()
        self._last_step = 0
        self._traces = 0
        self._began = time.monotonic()
        self._spent = 0.0

    def on_sample_time(self) -> None:
        # One sample a step: steps of a signal must increase.
        if self.run.step <= self._last_step:
            return
        self._last_step = self.run.step
        readings = {"memory__rss": self._process.memory_info().rss / MIB}
        device = self.run.backend.device_memory()
        if device is not None:
            readings["memory__device"] = device / MIB
        if self._traces:
            readings["traces__count"] = float(self._traces)
            readings["traces__signatures"] = float(len(self.run.shared["signatures"]))
        self.run.point(self.run.step, **readings)

    def after_step(self, step: int) -> None:
        # Where nothing is compiled the step "is traced" in every batch, which means nothing.
        if self.run.shared.pop("traced", False) and self._is_compiled:
            self._traces += 1

    @property
    def _is_compiled(self) -> bool:
        return keras.backend.backend() != "torch" and not self.run.model.run_eagerly

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        # A look at every object of the process: seldom, and only while it is cheap.
        elapsed = time.monotonic() - self._began
        if self._spent > self.run.settings.audit_budget * elapsed / 5:
            return
        started = time.monotonic()
        alive = sum(issubclass(type(thing), keras.Variable) for thing in gc.get_objects())
        self._spent += time.monotonic() - started
        self.run.point(self.run.step, memory__live_variables=float(alive))
