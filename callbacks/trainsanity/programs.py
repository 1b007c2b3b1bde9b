"""Two programs of one step: the host runs the whole one where it is all probes' turn, else a
shorter one.

A branch inside a program costs time also where it is not taken, and under XLA the compiler fuses
and rounds what is around it otherwise. So the step that was traced is compiled a second time
without what need not be seen at every step, once training has gone on for long enough to pay for
that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from trainsanity import pace
from trainsanity.pace import ComparedPace, GraphPace

Program = Callable[..., Any]

# Seconds of training for each that compiling takes, which happens once: 4 %, less than what audits
# may take by default (`audit_budget`).
WORTH = 25.0
# What TensorFlow takes to compile a graph once more, of a first step, which traces it: measured
# between 0.16 and 0.18 on small models.
OF_A_GRAPH = 0.2
# Trainable elements from which on a graph gets a shorter program. Its branch that is not taken is
# handed the gradients all the same: with 2.6 million weights that takes 5 % of a step of 10 ms,
# with up to 66,000 nothing that could be measured (2 cores).
MANY_WEIGHTS = 1_000_000
COMPARED = 32  # pairs of steps, one by each program, at a time
COMPARED_EVERY = 2048  # steps from one comparison of the programs to the next


class ShortProgram:
    """The second program: made of the first one, once training has paid for it.

    Args:
        make: makes it from the whole program and the arguments of a step; None where it cannot.
        kind: what a program is compiled for, of the arguments of a step; None where that is not
            known.
        guard: calls a function of ours from the user's step, `guard(function, *args)`; None where
            that fails, or has failed before.
        share: of the time that the first step takes, what compiling it once more does.
        direct: makes of the whole program and the arguments of a step one that runs the same with
            less ado; None where it cannot.

    Attributes:
        is_there: whether it is made.
    """

    def __init__(
        self,
        make: Callable[[Program, tuple[Any, ...]], Program | None],
        kind: Callable[[tuple[Any, ...]], Any],
        guard: Callable[..., Any],
        clock: Callable[[], float] = time.perf_counter,
        *,
        share: float = 1.0,
        direct: Callable[[Program, tuple[Any, ...]], Program | None] = lambda program, args: None,
    ) -> None:
        self._make, self._kind, self._guard, self._clock = make, kind, guard, clock
        self._make_direct = direct
        self._worth = WORTH * share
        self._whole: Program | None = None  # what it is made of
        self._kinds: Any = None
        self._worth_from = 0.0
        self._is_tried = False
        self._is_over = False
        self._short: Program | None = None
        self._direct: Program | None = None
        self._may_be_direct = True

    @property
    def is_there(self) -> bool:
        return self._short is not None

    def give_up(self) -> None:
        """The whole program runs from now on, whatever is compiled."""
        self._is_over, self._short = True, None

    def run(
        self,
        program: Program,
        args: tuple[Any, ...],
        *,
        is_ripe: bool,
        is_wanted: Callable[[tuple[Any, ...]], bool],
    ) -> tuple[Any, bool]:
        """One step, by the one or the other; its result, and whether it was the short one.

        Args:
            is_ripe: whether it may be made now.
            is_wanted: asked where there is one for these arguments.
        """
        if program is not self._whole:  # somebody has compiled the model anew
            return self._run_first(program, args), False
        chosen = self._guard(self._choose, program, args, is_ripe, is_wanted)
        if chosen is None:
            return program(*args), False
        try:
            return chosen(*args), chosen is self._short
        except (TypeError, ValueError) as error:  # nothing was run: it has looked at them only
            self._short, self._direct, self._may_be_direct = None, None, False
            self._guard(_raise, error)
            return program(*args), False

    def _run_first(self, program: Program, args: tuple[Any, ...]) -> Any:
        """Compiles it, and does not wait for the step."""
        self._whole, self._short, self._is_tried = program, None, False
        self._direct, self._may_be_direct = None, True
        began = self._clock()
        result = program(*args)
        now = self._clock()
        self._worth_from = now + self._worth * (now - began)
        self._kinds = self._guard(self._kind, args)
        return result

    def _choose(
        self,
        program: Program,
        args: tuple[Any, ...],
        is_ripe: bool,
        is_wanted: Callable[[tuple[Any, ...]], bool],
    ) -> Program | None:
        may_be_short = self._may_be_short(is_ripe)
        if not (may_be_short or self._may_be_direct):
            return None
        if self._kinds is None or self._kind(args) != self._kinds:  # as a short last batch
            return None
        if may_be_short and not self._is_tried:  # of another kind the user's code would be traced
            self._is_tried = True
            self._short = self._make(program, args)
        if self._short is not None and is_wanted(args):
            return self._short
        if self._may_be_direct and self._direct is None:
            self._direct = self._make_direct(program, args)
            self._may_be_direct = self._direct is not None
        return self._direct

    def _may_be_short(self, is_ripe: bool) -> bool:
        if self._is_over:
            return False
        if self._is_tried:
            return self._short is not None
        return is_ripe and self._clock() >= self._worth_from


class ProgramPace(ComparedPace):
    """Gives all probes their turn by choosing the program that a step runs.

    Args:
        short: the shorter one.
        wait: waits until what a step is given is there.
    """

    follows_weights = True

    def __init__(
        self,
        short: ShortProgram,
        wait: Callable[[Any], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(thins=True, clock=clock)
        self._short, self._wait = short, wait
        self._compared_at = 0  # the step at which the programs were last compared
        self._to_compare = 2 * COMPARED  # steps
        self._timed_from: float | None = None

    @property
    def is_next_full(self) -> bool:
        if not self._short.is_there:
            return True
        if self._to_compare:
            return self._to_compare % 2 == 0
        return self._steps + 1 >= self._next

    def look_always(self) -> None:
        self._short.give_up()

    def run(self, program: Program, args: tuple[Any, ...]) -> Any:
        """One step, by the program of its turn.

        Args:
            program: the whole one.
            args: its state and a batch.
        """
        result, is_short = self._short.run(
            program, args, is_ripe=self._steps >= pace.FIRST, is_wanted=self._wants_short
        )
        self.full = not is_short
        self._steps += 1
        if self.full:
            self._next = self._steps + self.stride
        return result

    def _wants_short(self, args: tuple[Any, ...]) -> bool:
        if self._to_compare:
            self._compare(args)
        elif self._steps - self._compared_at >= COMPARED_EVERY:
            self._to_compare = 2 * COMPARED
        return not self.is_next_full

    def _compare(self, args: tuple[Any, ...]) -> None:
        """Times a step alone, from when the one before has given what it needs: a few in turn, as
        the host does not run ahead meanwhile.

        Waits before a step only: until it is in Keras' hands, an interrupt would lose its result.
        """
        self._wait(args)
        now = self._clock()
        if self._timed_from is None:
            self._timed.pause()
        else:
            self._timed.add(now - self._timed_from, had_turn=self.full)
            self._to_compare -= 1
        self._timed_from = now
        if not self._to_compare:
            self._compared_at, self._timed_from = self._steps, None
            self.stride = pace.affordable(self.cost, self.step_seconds)


class ShortGraphPace(GraphPace):
    """Where a graph decides by itself, and a shorter one that need not runs between its turns.

    Args:
        short: the shorter one.
    """

    def __init__(self, read: Callable[[Any], Any], count: Any, short: ShortProgram) -> None:
        super().__init__(read, count)
        self._short = short

    def look_always(self) -> None:
        """The whole graph sees for itself at which steps something is wrong."""
        self._short.give_up()

    def run(self, program: Program, args: tuple[Any, ...]) -> Any:
        """One step; `ran` is told of it afterwards."""
        is_ripe = self._ran >= pace.FIRST
        return self._short.run(program, args, is_ripe=is_ripe, is_wanted=self._wants_short)[0]

    def _wants_short(self, args: tuple[Any, ...]) -> bool:
        return not self.is_next_full


def _raise(error: Exception) -> None:
    raise error
