"""Promised and kept reports."""

import pytest

from trainsanity.rules import NotTestable, RunFacts, history
from trainsanity.rules.run_silent import RunSilent


def found(**facts):
    base = {"last_seen_at": 1000.0, "silent_after": 60.0, "now": 1200.0, "step": 9}
    return list(RunSilent().check(history(facts=RunFacts(**(base | facts))).view()))


def test_a_promise_that_was_not_kept_is_told_with_both_times():
    (alert,) = found()
    assert [w.value for w in alert.witnesses] == [60.0, 200.0]


@pytest.mark.parametrize(
    "facts",
    [
        {"now": 1074.0},  # within the grace
        {"silent_after": 600.0},  # a long validation, announced
        {"state": "finished"},
        {"state": "failed"},
        {"last_seen_at": 1199.0},  # spoke again
    ],
    ids=str,
)
def test_near_misses_stay_quiet(facts):
    assert not found(**facts)


def test_the_alert_heals_when_the_run_speaks_again():
    assert RunSilent.heals


def test_without_a_clock_nothing_can_be_said():
    with pytest.raises(NotTestable, match="clock"):
        found(now=0.0)
