"""Which steps all probes look at, where each look costs Python's time."""

from __future__ import annotations

from trainsanity.pace import FIRST, MOST, Pace


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
    # 0.95 ms more than a light step, which is 9.5 times 1 % of 10 ms.
    turns = run(pace, clock, FIRST + 35, step=0.010, full=0.00115, light=0.0002)
    assert turns[:FIRST] == list(range(1, FIRST + 1))
    # Before a light step was seen, the whole cost counts.
    assert turns[FIRST:] == [FIRST + 12, FIRST + 22, FIRST + 32]
    assert pace.stride == 10


def test_cheap_probes_look_at_every_step():
    clock = Clock()
    turns = run(Pace(thins=True, clock=clock), clock, 200, step=1.0, full=0.009)
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
