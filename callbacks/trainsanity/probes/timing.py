"""Time: of the step, between steps, and waiting for data."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from trainsanity.executions import steps_per_execution
from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.tape import TapeRows

SECONDS, FRACTION = "_arrival/seconds", "_arrival/fraction"
WAIT = "time/data_wait"
TURN = 2.0**20  # the seconds of an arrival begin again at zero after so many


class Timing(Probe):
    """Host clocks around every execution of the step, and inside it a clock where a batch that
    TensorFlow fetches in the graph has arrived.
    """

    name = "timing"
    every_batch = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._began = 0.0
        self._ended: float | None = None
        self._first_step = 1
        self._rows: list[tuple[int, float, float]] = []
        # Step and when it was called, by the system's clock, at least until the tape is read.
        self._called: deque[tuple[int, float]] = deque(maxlen=2 * run.backend.TAPE_DEPTH)

    def trace_loss(self, step: Step) -> Columns:
        if not step.training:
            return {}
        arrived = self._arrival(step)
        if arrived is None:
            return {}
        if self.run.is_traced and self._called:
            self._called.pop()  # what this execution waits for is the trace
        return dict(zip((SECONDS, FRACTION), arrived, strict=True))

    def _arrival(self, step: Step) -> tuple[Any, Any] | None:
        run = self.run
        if steps_per_execution(run.model) > 1:
            run.not_testable[WAIT] = "several batches arrive in one execution"
            return None
        arrived: tuple[Any, Any] | None = run.backend.arrival(step.given, xla=run.compiled_by_xla)
        if arrived is None:
            run.not_testable[WAIT] = "only a step of TensorFlow without XLA fetches and times data"
        return arrived

    def before_step(self, step: int) -> None:
        self._began = time.perf_counter()
        self._called.append((step, time.time()))
        self._first_step = step

    def after_step(self, step: int) -> None:
        now = time.perf_counter()
        between = self._began - self._ended if self._ended is not None else 0.0
        steps = max(1, step - self._first_step + 1)
        self._rows.append((step, (now - self._began) / steps, between / steps))
        self._ended = now

    def on_rows(self, rows: TapeRows) -> Columns:
        if SECONDS not in rows.columns:
            return {}
        called = dict(self._called)
        began = np.array([called.get(int(step), np.nan) for step in rows.steps])
        arrived = rows.columns[SECONDS] + rows.columns[FRACTION]
        waited = np.mod(arrived - began, TURN)
        # A clock that was set back in between has gone nearly once around.
        known = waited < TURN / 2
        self.run.emit(rows.steps[known], {WAIT: waited[known]})
        return {}

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
