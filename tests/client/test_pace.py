"""Which steps all probes look at, where each look costs Python's time."""

from __future__ import annotations

import operator
from typing import Any

import keras
import numpy as np
import pytest

from trainsanity.pace import (
    ADAPTED_EVERY,
    FIRST,
    MOST,
    SHARE,
    TRIAL,
    TRIED_EVERY,
    GraphPace,
    Pace,
    TimedSteps,
    affordable,
)
from trainsanity.programs import COMPARED, COMPARED_EVERY, WORTH, ProgramPace, ShortProgram


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(pace: Pace, clock: Clock, steps: int, *, step: float, full: float, light: float = 0.0):
    """Steps of so many seconds, and of probes that take so long; the steps with a full turn."""
    turns = []
    for number in range(1, steps + 1):
        is_full = pace.begin()
        spent = full if is_full else light
        clock.now += step + spent
        pace.spend(spent)
        pace.end()
        turns += [number] * is_full
    return turns


def test_all_probes_look_at_the_first_steps_and_then_as_often_as_time_allows():
    clock = Clock()
    pace = Pace(thins=True, clock=clock)
    # 0.475 ms more than a light step, which is 9.5 times 0.5 % of 10 ms.
    turns = run(pace, clock, FIRST + 35, step=0.010, full=0.000575, light=0.0001)
    assert turns[:FIRST] == list(range(1, FIRST + 1))
    # Before a light step was seen, the whole cost counts.
    assert turns[FIRST:] == [FIRST + 12, FIRST + 22, FIRST + 32]
    assert pace.stride == 10


def test_cheap_probes_look_at_every_step():
    clock = Clock()
    turns = run(Pace(thins=True, clock=clock), clock, 200, step=1.0, full=0.0045)
    assert len(turns) == 200


def test_turns_are_never_further_apart_than_the_host_reads():
    clock = Clock()
    turns = run(Pace(thins=True, clock=clock), clock, 3 * MOST, step=1e-6, full=1.0)
    assert turns[FIRST:] == [FIRST + MOST, FIRST + 2 * MOST]


def test_a_turn_may_be_taken_between_two_others():
    clock = Clock()
    pace = Pace(thins=True, clock=clock)
    run(pace, clock, FIRST + 5, step=1e-6, full=1.0)
    assert not pace.is_next_full
    pace.take_next()
    assert pace.is_next_full
    assert run(pace, clock, 3, step=1e-6, full=1.0) == [1]


def test_nothing_is_left_out_of_compiled_steps():
    clock = Clock()
    turns = run(Pace(thins=False, clock=clock), clock, 200, step=1e-6, full=1.0)
    assert len(turns) == 200


class Graph:
    """Steps of a graph, which asks its pace by itself."""

    def __init__(self) -> None:
        self.count = keras.Variable(0, dtype="int32", trainable=False)
        self.pace = GraphPace(keras.ops.convert_to_numpy, self.count)

    def run(self, steps: int, *, light: float, extra: float) -> list[int]:
        """Steps of so many seconds, and of turns that take so much longer; those with a turn."""
        turns = []
        for _ in range(steps):
            number = int(self.count.numpy()) + 1
            is_turn = bool(self.pace.is_turn())
            if is_turn:
                self.pace.take()
                turns.append(number)
            self.count.assign_add(1)
            self.pace.ran(light + extra * is_turn)
        return turns


def test_a_graph_tries_what_turns_take_and_then_gives_as_many_as_time_allows():
    graph = Graph()
    assert graph.run(FIRST, light=0.001, extra=0.0000625) == list(range(1, FIRST + 1))
    tried = graph.run(ADAPTED_EVERY, light=0.001, extra=0.0000625)
    assert np.diff(tried).tolist()[:-1] == [TRIAL] * (len(tried) - 2)
    turns = graph.run(4 * ADAPTED_EVERY, light=0.001, extra=0.0000625)
    # 12.5 times 0.5 % of a step.
    assert set(np.diff(turns).tolist()) == {13}


def test_a_graph_gives_every_step_its_turn_where_that_takes_little_and_tries_again_later():
    graph = Graph()
    graph.run(FIRST + ADAPTED_EVERY, light=0.1, extra=0.00045)
    steps = TRIED_EVERY - 2 * ADAPTED_EVERY
    assert len(graph.run(steps, light=0.1, extra=0.00045)) == steps
    turns = graph.run(4 * ADAPTED_EVERY, light=0.001, extra=0.00045)
    assert len(turns) < 4 * ADAPTED_EVERY


@pytest.mark.parametrize("extra", [0.03, 0.05, 0.1])
def test_turns_take_no_more_than_their_share_where_steps_vary_more(extra):
    """A step varies by a tenth of itself, and some take half as long again."""
    shares = []
    for seed in range(100):
        chance, timed = np.random.default_rng(seed), TimedSteps()
        for number in range(2 * ADAPTED_EVERY):
            had_turn = number % TRIAL == 0
            seconds = 1 + abs(chance.normal(0, 0.1)) + 0.5 * (chance.random() < 0.03)
            timed.add(seconds * (1 + extra * had_turn), had_turn=had_turn)
        shares.append(extra / affordable(timed.extra, timed.step_seconds))
    assert np.quantile(shares, 0.9) <= SHARE
    assert np.median(shares) > SHARE / 3, "what can be afforded is looked at"


def test_turns_that_take_nothing_are_taken_at_every_step_where_steps_vary_little():
    chance, timed = np.random.default_rng(0), TimedSteps()
    for number in range(400):
        timed.add(1 + chance.normal(0, 0.01), had_turn=number % 2 == 0)
    assert affordable(timed.extra, timed.step_seconds) == 1


def test_a_step_after_a_pause_is_not_compared_with_the_one_before_it():
    timed = TimedSteps()
    timed.add(1.0, had_turn=False)
    timed.pause()
    timed.add(9.0, had_turn=True)
    assert not timed.is_known
    timed.add(1.0, had_turn=False)
    timed.add(1.5, had_turn=True)
    assert timed.is_known
    assert timed.extra == 0.5


def test_steps_of_a_graph_that_others_run_put_nothing_out_of_step():
    graph = Graph()
    graph.run(FIRST + 2 * ADAPTED_EVERY, light=0.001, extra=0.00025)
    graph.count.assign_add(17)
    graph.run(ADAPTED_EVERY, light=0.001, extra=0.00025)
    turns = graph.run(ADAPTED_EVERY * 4, light=0.001, extra=0.00025)
    assert set(np.diff(turns).tolist()) == {50}


def test_a_step_of_a_graph_may_be_given_a_turn():
    graph = Graph()
    graph.run(FIRST + 2 * ADAPTED_EVERY + 3, light=0.001, extra=0.1)
    assert not graph.pace.is_next_full
    graph.pace.take_next()
    assert graph.pace.is_next_full
    first = int(graph.count.numpy()) + 1
    assert graph.run(3, light=0.001, extra=0.1) == [first]
    assert not graph.pace.full


class Programs:
    """Steps of a program that takes 1 s to compile, and of a shorter one."""

    def __init__(self, *, whole: float, short: float) -> None:
        self.clock = Clock()
        self.seconds = {"whole": whole, "short": short}
        self.ran: list[str] = []
        self.made_at: list[int] = []
        short = ShortProgram(self._make, lambda args: args[1].shape, operator.call, self.clock)
        self.pace = ProgramPace(short, lambda args: None, self.clock)
        self.whole = lambda *args: self._run("whole")

    def _make(self, program: Any, args: Any) -> Any:
        self.made_at.append(len(self.ran) + 1)
        self.clock.now += 1.0
        return lambda *args: self._run("short")

    def _run(self, name: str) -> None:
        self.clock.now += self.seconds[name] + (0.0 if self.ran else 1.0)
        self.ran.append(name)

    def run(self, steps: int, rows: int = 4) -> list[int]:
        """Runs steps; gives those by the whole program."""
        before = len(self.ran)
        for _ in range(steps):
            self.pace.run(self.whole, ({}, np.zeros(rows)))
        found = enumerate(self.ran[before:], before + 1)
        return [step for step, name in found if name == "whole"]


def test_a_second_program_is_made_when_training_has_paid_for_it() -> None:
    programs = Programs(whole=0.1, short=0.08)
    programs.run(1000)
    # The first step has taken 1.1 s to compile and to run.
    assert programs.made_at == [1 + round(WORTH * 1.1 / 0.1) + 1]
    slow = Programs(whole=1000.0, short=1.0)
    slow.run(2 * FIRST)
    assert slow.made_at == [FIRST + 1], "most trouble shows at once"


def test_the_whole_program_has_its_turns_as_often_as_time_allows() -> None:
    programs = Programs(whole=0.11, short=0.1)
    programs.run(FIRST + 600)
    (made,) = programs.made_at
    assert programs.pace.stride == 20  # 10 ms are 0.5 % of 20 steps
    turns = [step for step in programs.run(100) if step > made + 2 * COMPARED]
    assert set(np.diff(turns)) == {20}
    programs.pace.take_next()
    assert programs.pace.is_next_full
    again = programs.run(COMPARED_EVERY)
    assert len(again) > COMPARED_EVERY / 20 + COMPARED / 2, "compares them again"


def test_a_program_that_is_no_shorter_is_left() -> None:
    programs = Programs(whole=0.1, short=0.1)
    programs.run(700)
    assert programs.pace.stride == 1
    assert len(programs.run(100)) == 100


def test_batches_of_another_shape_run_the_whole_program() -> None:
    programs = Programs(whole=0.12, short=0.1)
    programs.run(700)
    assert len(programs.run(3, rows=2)) == 3
    odd = Programs(whole=0.12, short=0.1)
    odd.run(1)
    odd.run(700, rows=2)
    assert not odd.made_at, "for another shape the step would be traced again"


def test_a_loss_that_is_not_finite_ends_the_turns() -> None:
    programs = Programs(whole=0.12, short=0.1)
    programs.run(700)
    programs.pace.look_always()
    assert len(programs.run(100)) == 100


def test_a_step_that_is_compiled_anew_gets_another_short_program() -> None:
    programs = Programs(whole=0.12, short=0.1)
    programs.run(700)
    programs.whole = lambda *args: programs._run("whole")
    assert len(programs.run(20)) == 20
    programs.run(20)
    assert len(programs.made_at) == 2


class Direct:
    """Steps of a program that can be called with less ado, while `takes` says so."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.ran: list[str] = []
        self.made = 0
        self.whole = lambda rows: self.ran.append("whole")
        self.short = ShortProgram(
            lambda program, args: None,
            lambda args: args[0].shape,
            operator.call,
            Clock(),
            direct=self._make,
        )

    def _make(self, program: Any, args: Any) -> Any:
        self.made += 1
        return self._run if self.takes else None

    def _run(self, rows: Any) -> None:
        if not self.takes:
            raise TypeError("another argument was expected")
        self.ran.append("direct")

    def run(self, *rows: int) -> list[str]:
        self.ran.clear()
        for number in rows:
            args = (np.zeros(number),)
            self.short.run(self.whole, args, is_ripe=False, is_wanted=lambda args: True)
        return [*self.ran]


def test_the_first_step_and_those_of_another_kind_are_called_as_usual() -> None:
    steps = Direct()
    assert steps.run(4, 4, 4, 3, 4) == ["whole", "direct", "direct", "whole", "direct"]
    assert steps.made == 1


def test_what_refuses_its_arguments_is_never_called_again() -> None:
    steps = Direct()
    steps.run(4, 4)
    steps.takes = False
    with pytest.raises(TypeError):  # of the guard, which here lets everything through
        steps.run(4)
    assert steps.run(4, 4) == ["whole", "whole"]
    steps.whole = lambda rows: steps.ran.append("new")
    steps.takes = True
    assert steps.run(4, 4) == ["new", "direct"]


def test_where_nothing_is_saved_it_is_asked_once() -> None:
    steps = Direct(takes=False)
    assert steps.run(4, 4, 4) == ["whole"] * 3
    assert steps.made == 1
