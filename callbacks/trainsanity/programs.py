"""Turns of probes where a whole step is one pure program, as on JAX.

A branch inside would be part of the program, which XLA then fuses and rounds otherwise. So the
step that was traced is compiled a second time without what need not be seen at every step, once
training has gone on for long enough to pay for that, and the host chooses between the two.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import keras

from trainsanity import pace
from trainsanity.pace import Pace

Program = Callable[..., Any]

# Seconds of training for each that compiling takes, which happens once: 4 %, less than what audits
# may take by default (`audit_budget`).
WORTH = 25.0
COMPARED = 15  # steps of each program whose median counts
COMPARED_EVERY = 2048  # steps from one comparison of the programs to the next


class ProgramPace(Pace):
    """Gives all probes their turn by choosing the program that a step runs.

    Args:
        make: makes the short program from the whole one and the arguments of a step; None where it
            cannot.
        wait: waits until what a step is given is there.
        guard: calls a function of ours from the user's step, `guard(function, *args)`; None where
            that fails, or has failed before.
    """

    runs_as = "is compiled"
    follows_weights = True

    def __init__(
        self,
        make: Callable[[Program, tuple[Any, ...]], Program | None],
        wait: Callable[[Any], None],
        guard: Callable[..., Any],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(thins=True, clock=clock)
        self._make, self._wait, self._guard = make, wait, guard
        self._short: Program | None = None
        self._is_made = False  # the short one, or it was tried
        self._worth_from: float | None = None
        self._shapes: Any = None  # of the batches that both programs take
        self._looks_always = False
        self._compared_at = 0  # the step at which the programs were last compared
        self._to_compare = 2 * COMPARED  # steps
        self._timed_from: float | None = None
        self._timings: dict[bool, deque[float]] = {
            is_full: deque(maxlen=COMPARED) for is_full in (True, False)
        }

    # while a step is traced

    def begin(self) -> bool:
        """All that can be asked is: what is left out is left out of what was traced."""
        return True

    def end(self) -> None:
        """Nothing: `run` sees what steps take."""

    # on the host

    @property
    def is_next_full(self) -> bool:
        if self._short is None or self._looks_always:
            return True
        if self._to_compare:
            return self._to_compare % 2 == 0
        return self._steps + 1 >= self._next

    def look_always(self) -> None:
        self._looks_always = True

    def run(self, program: Program, args: tuple[Any, ...]) -> Any:
        """One step, by the program of its turn.

        Args:
            program: the whole one.
            args: its state and a batch.
        """
        if self._worth_from is None:
            result = self._run_first(program, args)
        else:
            short = self._guard(self._choose, program, args)
            self.full = short is None
            result = program(*args) if short is None else self._run_short(short, program, args)
        self._steps += 1
        if self.full:
            self._next = self._steps + self.stride
        return result

    def _run_first(self, program: Program, args: tuple[Any, ...]) -> Any:
        """Compiles it, and does not wait for the step."""
        began = self._clock()
        result = program(*args)
        now = self._clock()
        self._worth_from = now + WORTH * (now - began)
        self._shapes = self._guard(_shapes, args[1:])
        return result

    def _choose(self, program: Program, args: tuple[Any, ...]) -> Program | None:
        """The short program; None where it is the whole one's turn, or it is the only one."""
        if self._short is None and (self._is_made or not self._is_worth_it()):
            return None
        is_as_usual = _shapes(args[1:]) == self._shapes  # a short last batch is not
        if is_as_usual and not self._is_made:  # for others the user's code would be traced
            self._is_made = True
            self._short = self._make(program, args)
        if self._short is None or self._looks_always:
            return None
        if self._to_compare:
            self._compare(args)
        elif self._steps - self._compared_at >= COMPARED_EVERY:
            self._to_compare = 2 * COMPARED
        return self._short if is_as_usual and not self.is_next_full else None

    def _is_worth_it(self) -> bool:
        return self._steps >= pace.FIRST and self._clock() >= (self._worth_from or 0.0)

    def _compare(self, args: tuple[Any, ...]) -> None:
        """Times a step alone, from when the one before has given what it needs: a few in turn, as
        the host does not run ahead meanwhile.

        Waits before a step only: until it is in Keras' hands, an interrupt would lose its result.
        """
        self._wait(args)
        now = self._clock()
        if self._timed_from is not None:
            self._timings[self.full].append(now - self._timed_from)
            self._to_compare -= 1
        self._timed_from = now
        if not self._to_compare:
            self._compared_at, self._timed_from = self._steps, None
            self.stride = pace.affordable(self.cost, self.step_seconds)

    def _run_short(self, short: Program, program: Program, args: tuple[Any, ...]) -> Any:
        try:
            return short(*args)
        except (TypeError, ValueError) as error:  # nothing was run: it has looked at them only
            self._short = None
            self.full = True
            self._guard(_raise, error)
            return program(*args)

    @property
    def knows_cost(self) -> bool:
        return bool(self._timings[True] and self._timings[False])

    @property
    def reason(self) -> str:
        return super().reason if self.knows_cost else "it is being seen what measuring them takes"

    @property
    def cost(self) -> float:
        return max(0.0, statistics.median(self._timings[True]) - self.step_seconds)

    @property
    def step_seconds(self) -> float:
        return statistics.median(self._timings[False])


def _shapes(batch: Any) -> list[Any]:
    """What a program is compiled for; numbers of Python have a type only."""
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    return [(getattr(x, "shape", None), getattr(x, "dtype", type(x))) for x in leaves]


def _raise(error: Exception) -> None:
    raise error
