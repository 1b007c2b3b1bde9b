"""Memory of the process and of the device, and the variables that are alive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from trainsanity.live_variables import LiveVariables
from trainsanity.probes.probe import Probe

MIB = 1024.0 * 1024.0
OWN_PAGES = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


class Memory(Probe):
    """Resident and device memory every two seconds or so; Keras variables alive at epoch ends."""

    name = "memory"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._process = psutil.Process()
        self._last_step = 0
        self._counted_at = 0
        optimizer = getattr(run.model, "optimizer", None)
        known = [*run.model.variables, *(optimizer.variables if optimizer else ())]
        is_heard = not run.backend.follows_code(run.model)
        self._variables = LiveVariables(known) if is_heard else None

    def on_sample_time(self) -> None:
        # One sample a step: steps of a signal must increase.
        if self.run.step <= self._last_step:
            return
        self._last_step = self.run.step
        readings = {"memory/rss": self._process.memory_info().rss / MIB}
        without_files = _without_files()
        if without_files is not None:
            readings["memory/without_files"] = without_files
        device = self.run.backend.device_memory()
        if device is not None:
            readings["memory/device"] = device / MIB
        self.run.points(self.run.step, readings)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if self._variables is not None and self.run.step > self._counted_at:
            self._counted_at = self.run.step
            self.run.points(self.run.step, {"memory/live_variables": float(len(self._variables))})

    def on_closed(self) -> None:
        if self._variables is not None:
            self._variables.stop()


def _without_files() -> float | None:
    """MiB of resident memory that are no pages of files, which come with reading and are the
    system's to take back; None where it does not tell (see proc_pid_status(5)).
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    kib = [int(number) for number in OWN_PAGES.findall(text)]
    return sum(kib) / 1024.0 if kib else None
