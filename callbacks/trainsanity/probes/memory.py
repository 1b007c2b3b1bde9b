"""Memory of the process and of the device."""

from __future__ import annotations

from typing import Any

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

    def on_sample_time(self) -> None:
        # One sample a step: steps of a signal must increase.
        if self.run.step <= self._last_step:
            return
        self._last_step = self.run.step
        readings = {"memory__rss": self._process.memory_info().rss / MIB}
        device = self.run.backend.device_memory()
        if device is not None:
            readings["memory__device"] = device / MIB
        readings["traces__count"] = float(self.run.shared.get("traces", 0))
        self.run.point(self.run.step, **readings)
