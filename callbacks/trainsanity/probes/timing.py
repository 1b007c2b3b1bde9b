"""Time: of the step, between steps, and waiting for data; traces of the train function."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from trainsanity.probes.probe import Probe


class Timing(Probe):
    """Host clocks around every execution of the step."""

    name = "timing"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._began = 0.0
        self._ended: float | None = None
        self._first_step = 1
        self._rows: list[tuple[int, float, float]] = []

    def before_step(self, step: int) -> None:
        self._began = time.perf_counter()
        self._first_step = step

    def after_step(self, step: int) -> None:
        now = time.perf_counter()
        between = self._began - self._ended if self._ended is not None else 0.0
        steps = max(1, step - self._first_step + 1)
        self._rows.append((step, (now - self._began) / steps, between / steps))
        self._ended = now

    def on_sample(self) -> None:
        # Audits between two steps are no time of the user's callbacks.
        self._ended = None

    def on_sample_time(self) -> None:
        self._flush()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self._flush()
        # What comes now (validation, checkpoints) is no time between two steps.
        self._ended = None

    def on_end(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = np.array(self._rows)
        self._rows.clear()
        steps = table[:, 0].astype(np.int64)
        self.run.emit(steps, {"time/step": table[:, 1], "time/callbacks": table[:, 2]})
