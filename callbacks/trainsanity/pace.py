"""Which steps all probes look at, where the step runs as Python code and every look costs time.

A compiled step computes the evidence of every batch at little cost. On torch, and with
`run_eagerly`, each operation of ours costs Python's time, which can be more than a small step
takes itself. There the probes whose columns add up over an epoch see every batch, and the others
as many as fit into a share of the time that training takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

FIRST = 64  # steps that all probes look at, whatever it costs: most trouble shows at once
# Of the time of a step, for the probes that need not see every batch: half of the 2 % that all of
# ours may add to a step of 10 ms.
SHARE = 0.01
MOST = 64  # steps from one turn to the next at most: as many as the host reads at once
REMEMBERED = 15  # steps of each kind whose median counts


class Pace:
    """Gives all probes their turn at some steps, and some probes at every step.

    Args:
        thins: False where all probes look at every step.
        clock: gives seconds.

    Attributes:
        full: whether all have their turn at the step under way.
        stride: steps from one turn to the next.
    """

    def __init__(self, *, thins: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self.full = True
        self.stride = 1
        self._thins = thins
        self._clock = clock
        self._steps = 0  # begun
        self._next = 0  # the step of the next turn
        self._began = self._own = 0.0
        self._costs: dict[bool, deque[float]] = {x: deque(maxlen=REMEMBERED) for x in (True, False)}
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def is_next_full(self) -> bool:
        """Whether all probes have their turn at the step to come."""
        return not self._thins or self._steps < FIRST or self._steps + 1 >= self._next

    def take_next(self) -> None:
        """All have their turn at the step to come, as at the first of an epoch."""
        self._next = 0

    def begin(self) -> bool:
        """A step begins; returns `full`."""
        self.full = self.is_next_full
        self._steps += 1
        self._began, self._own = self._clock(), 0.0
        return self.full

    def spend(self, seconds: float) -> None:
        """Time that probes have taken within the step."""
        self._own += seconds

    def end(self) -> None:
        """The step has ended: sees what it took, and when the next turn is."""
        if not self._thins:
            return
        self._costs[self.full].append(self._own)
        self._seconds.append(self._clock() - self._began - self._own)
        if self.full:
            self.stride = self._affordable()
            self._next = self._steps + self.stride

    def _affordable(self) -> int:
        light = self._costs[False]
        extra = self.cost - (statistics.median(light) if light else 0.0)
        return min(MOST, max(1, math.ceil(extra / (SHARE * self.step_seconds))))

    @property
    def cost(self) -> float:
        """Seconds that all probes take within a step."""
        return statistics.median(self._costs[True])

    @property
    def step_seconds(self) -> float:
        """Of the step itself."""
        return statistics.median(self._seconds)
