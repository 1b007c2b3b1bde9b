"""Memory that grows and does not stop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.memory_growth import MemoryGrowth


def found(levels, per_epoch=1, variables=None, anonymous=None):
    ends = range(per_epoch, len(levels) + 1, per_epoch)
    signals = {"memory/rss": levels}
    if anonymous is not None:
        signals["memory/without_files"] = anonymous
    if variables is not None:
        signals["memory/live_variables"] = variables
    run = history(signals, audits=[("epoch", n, {"last_step": n}) for n in ends])
    return list(MemoryGrowth().check(run.view()))


def test_a_list_that_grows_in_a_callback_is_advice_as_nothing_else_grows():
    (alert,) = found([500.0 + 10 * n for n in range(30)], variables=[40] * 30)
    assert alert.severity is Severity.ADVICE
    assert "outside of the model" in alert.message


def test_variables_that_grow_too_make_it_a_warning():
    (alert,) = found([500.0 + 10 * n for n in range(30)], variables=range(30))
    assert alert.severity is None
    assert alert.witnesses[2].name == "memory/live_variables"


@given(
    size=st.floats(1, 20000),
    epochs=st.floats(0.1, 4),
    noise=st.integers(0, 2**32 - 1),
    count=st.integers(12, 60),
)
def test_a_cache_or_arena_that_fills_up_is_quiet(size, epochs, noise, count):
    """An exponential approach, with garbage on top that comes and goes."""
    time = np.arange(count * 5) / 5
    filled = 500 + size * (1 - np.exp(-time / epochs))
    garbage = np.random.default_rng(noise).uniform(0, 30, len(time))
    assert not found(filled + garbage, per_epoch=5)


@given(st.integers(0, 2**32 - 1), st.floats(0, 300))
def test_a_level_that_only_wanders_is_quiet(seed, width):
    levels = 2000 + np.random.default_rng(seed).uniform(0, width, 100)
    assert not found(levels, per_epoch=5)


def test_pages_of_a_file_that_is_read_through_are_quiet():
    assert not found([500.0 + 10 * n for n in range(30)], anonymous=[300.0] * 30)


def test_growth_is_found_while_the_system_takes_pages_of_files_back():
    (alert,) = found(
        [800.0 - 5 * n for n in range(30)], anonymous=[300.0 + 10 * n for n in range(30)]
    )
    assert alert.subject == "memory of the process"
    assert alert.witnesses[0].name == "memory/without_files in the first stretch"


def test_growth_below_the_floor_is_nobodys_trouble():
    assert not found([500.0 + n for n in range(60)])


def test_a_level_that_jumped_once_is_quiet():
    """A second model was built for validation."""
    assert not found([500.0] * 10 + [900.0] * 20)


def test_few_epochs_are_not_testable():
    with pytest.raises(NotTestable, match="needs 10 epochs, 3 have ended"):
        found([500.0, 600.0, 700.0])


def test_memory_that_was_not_measured_is_not_testable():
    with pytest.raises(NotTestable):
        list(MemoryGrowth().check(history(loss__reported=[1.0]).view()))
