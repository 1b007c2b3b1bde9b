"""Which steps all probes look at, where every look costs time.

Each operation of ours takes time, most where the step runs as Python code: on torch and with
`run_eagerly`. All of them together can take more than a small step takes itself. The probes whose
columns add up over an epoch see every batch, and the others as many as fit into a share of the time
that training takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

FIRST = 64  # steps that all probes look at, whatever it costs: most trouble shows at once
# Of the time of a step, for the probes that need not see every batch: a quarter of the 2 % that all
# of ours, and a server beside the training, may add to a step of 10 ms.
SHARE = 0.005
MOST = 64  # steps from one turn to the next at most
REMEMBERED = 15  # steps of each kind whose median counts
TRIAL = 4  # the stride by which a graph shows what turns take
ADAPTED_EVERY = FIRST  # steps of a graph
TRIED_EVERY = 512  # steps of a graph, where every step has been worth a turn
COMPARED = 64  # steps, and pairs of steps, that tell what a turn takes
# Of a median, by those of a normal distribution: its standard error is sqrt(pi / 2) times that of a
# mean, the standard deviation 1.4826 times the median absolute deviation, and 95 % lie below 1.645.
ERROR_OF_MEDIAN, DEVIATION, QUANTILE = math.sqrt(math.pi / 2), 1.4826, 1.645


class Pace:
    """Gives all probes their turn at some steps, and some probes at every step.

    Args:
        thins: False where all probes look at every step.
        clock: gives seconds.

    Attributes:
        in_graph: whether a graph decides by itself at each step.
        follows_weights: whether sampled weights are followed at every step all the same.
        full: whether all have their turn at the step under way.
        stride: steps from one turn to the next.
    """

    in_graph = False
    follows_weights = False
    takes, runs_as = "takes", "runs as Python code"

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

    def look_always(self) -> None:
        """Something is wrong: all have their turn from now on where that can only be told after
        the step.
        """

    def ran(self, seconds: float) -> None:
        """An execution of the compiled step took so long."""

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
            light = self._costs[False]
            extra = self.cost - (statistics.median(light) if light else 0.0)
            self.stride = affordable(extra, self.step_seconds)
            self._next = self._steps + self.stride

    @property
    def knows_cost(self) -> bool:
        """Whether it was seen what a turn takes."""
        return True

    @property
    def reason(self) -> str:
        """Why not all probes have their turn at every step."""
        return (
            f"measuring them {self.takes} {1e3 * self.cost:.2g} ms beside a step of "
            f"{1e3 * self.step_seconds:.2g} ms that {self.runs_as}"
        )

    @property
    def cost(self) -> float:
        """Seconds that all probes take within a step."""
        return statistics.median(self._costs[True])

    @property
    def step_seconds(self) -> float:
        """Of the step itself."""
        return statistics.median(self._seconds)


def affordable(extra: float, step_seconds: float) -> int:
    """Steps from one turn to the next, so that turns take their share of the time at most.

    Args:
        extra: seconds that a turn takes.
        step_seconds: that a step takes without.
    """
    return min(MOST, max(1, math.ceil(extra / (SHARE * step_seconds))))


class TimedSteps:
    """What a turn takes, told by the times of whole steps with one, and of those right before
    without: drift of the machine cancels within such a pair.
    """

    def __init__(self) -> None:
        self._light: deque[float] = deque(maxlen=COMPARED)  # seconds of steps without a turn
        self._extra: deque[float] = deque(maxlen=COMPARED)  # of a turn
        self._before: float | None = None  # of the step before, where it was without

    def add(self, seconds: float, *, had_turn: bool) -> None:
        """A step took so long."""
        if not had_turn:
            self._light.append(seconds)
            self._before = seconds
        elif self._before is not None:
            self._extra.append(seconds - self._before)
            self._before = None

    def pause(self) -> None:
        """The step to come does not follow the last one that was added."""
        self._before = None

    @property
    def is_known(self) -> bool:
        """Whether there was a pair yet."""
        return bool(self._extra)

    @property
    def extra(self) -> float:
        """Seconds that a turn takes at most: 95 times of 100 the median is not more. Steps vary by
        more than turns take, and one that seems to cost nothing would be taken at every step.
        """
        median = statistics.median(self._extra)
        deviation = DEVIATION * statistics.median(abs(x - median) for x in self._extra)
        error = ERROR_OF_MEDIAN * deviation / math.sqrt(len(self._extra))
        return max(0.0, median + QUANTILE * error)

    @property
    def step_seconds(self) -> float:
        """Of a step without a turn, the median."""
        return statistics.median(self._light)


class ComparedPace(Pace):
    """Gives turns in a compiled step, where only the times of whole steps tell what they take."""

    takes, runs_as = "takes up to", "is compiled"

    def __init__(self, *, thins: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(thins=thins, clock=clock)
        self._timed = TimedSteps()

    def begin(self) -> bool:
        """While a step is traced: all that can be asked is."""
        return True

    def end(self) -> None:
        """Nothing: it is told elsewhere what steps take."""

    @property
    def knows_cost(self) -> bool:
        return self._timed.is_known

    @property
    def reason(self) -> str:
        return super().reason if self.knows_cost else "it is being seen what measuring them takes"

    @property
    def cost(self) -> float:
        return self._timed.extra

    @property
    def step_seconds(self) -> float:
        return self._timed.step_seconds


class Mark:
    """A number of a step of the graph, kept on the device."""

    def __init__(self, count: Any) -> None:
        self._count = count
        self._at = keras.Variable(-1, trainable=False, dtype="int32", name="trainsanity_mark")

    def set_in_step(self) -> None:
        """For the step to come, while a step is traced."""
        self._at.assign(ops.convert_to_tensor(self._count) + 1)

    def set(self) -> None:
        """For the step to come, between two steps."""
        self._at.assign(self._count)

    def is_now(self) -> Any:
        """Whether it was set for the step under way, a bool tensor."""
        return ops.equal(self._at, self._count)


class GraphPace(ComparedPace):
    """Gives turns inside a graph, where no Python code of ours runs at a step.

    Args:
        read: gives the value of a variable.
        count: variable that counts the steps of the graph that were run before.

    Attributes:
        taken: marks the step after the latest turn.
        count: as given.
    """

    in_graph = True

    def __init__(self, read: Callable[[Any], Any], count: Any) -> None:
        super().__init__(thins=False)
        self.taken = Mark(count)
        self._read, self.count = read, count
        self._turn = keras.Variable(0, trainable=False, dtype="int32", name="trainsanity_turn")
        self._every = keras.Variable(1, trainable=False, dtype="int32", name="trainsanity_stride")
        self._ran = 0  # as `count`, on the host
        self._tried = 0  # the step from which on turns were left out to see what they take

    # while a step is traced

    def is_turn(self) -> Any:
        """A bool tensor."""
        return ops.greater_equal(self.count, self._turn)

    def take(self) -> None:
        """It is the step's turn: says when the next is."""
        self.taken.set_in_step()
        self._turn.assign(ops.convert_to_tensor(self.count) + ops.convert_to_tensor(self._every))

    # on the host

    @property
    def is_next_full(self) -> bool:
        return self._ran >= self._next

    def take_next(self) -> None:
        if not self.is_next_full:
            self._next = 0
            self._turn.assign(0)

    def ran(self, seconds: float) -> None:
        """A step was run, and took so long."""
        self.full = self.is_next_full
        self._timed.add(seconds, had_turn=self.full)
        if self.full:
            self._next = self._ran + self.stride
        self._ran += 1
        if self._ran % ADAPTED_EVERY == ADAPTED_EVERY - 1:  # the next has its turn for FIRST
            self._adapt()

    def _adapt(self) -> None:
        """Sees how often turns can be afforded; steps that others have run count in the graph."""
        self._ran, self._next = int(self._read(self.count)), int(self._read(self._turn))
        is_old = self._ran - self._tried >= TRIED_EVERY
        if not self.knows_cost or (self.stride == 1 and is_old):
            self._tried, stride = self._ran, TRIAL
        else:
            stride = affordable(self.cost, self.step_seconds)
        if stride != self.stride:
            self.stride = stride
            self._every.assign(stride)
