"""Slow steps and waiting for data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.step_time_anomaly import StepTimeAnomaly


def found(times, waits=None):
    signals = {"time/step": times} | ({} if waits is None else {"time/data_wait": waits})
    return list(StepTimeAnomaly().check(history(signals).view()))


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 2.0), st.integers(400, 3000))
def test_noise_compilation_and_single_slow_steps_are_quiet(seed, usual, steps):
    random = np.random.default_rng(seed)
    times = usual * random.lognormal(0, 0.2, steps)
    times[0] += 60  # compiles
    times[100::100] += 20 * usual  # checkpoints
    assert not found(times, times * 0.1)


def test_steps_that_become_slower_for_good_are_advice():
    (alert,) = found(np.linspace(0.1, 0.5, 2000))
    assert StepTimeAnomaly.severity is Severity.ADVICE
    assert alert.subject == "step time"


def test_a_device_that_runs_behind_the_host_is_no_slower_later():
    """As on JAX: a queue of steps takes some at once, and then each waits for one before."""
    times = np.full(8000, 0.01)
    times[:6000:4] = 0.0002
    times[0] = 1.0
    assert not found(times)


def test_a_stretch_in_which_the_pipeline_stalls_is_found_with_its_steps():
    times = np.full(1000, 0.1)
    times[600:660] = 2.0
    (alert,) = found(times)
    assert alert.subject == "slow stretch"
    assert alert.first_step <= 601 <= 660 <= alert.last_step


def test_waiting_for_data_needs_half_of_the_step_and_some_milliseconds():
    assert found([0.1] * 500, [0.08] * 500)[0].subject == "input pipeline"
    assert not found([0.1] * 500, [0.04] * 500)
    assert not found([0.001] * 500, [0.0009] * 500)


def test_a_short_run_is_not_testable():
    with pytest.raises(NotTestable, match="needs 400"):
        found([0.1] * 50)
