"""Honest training rounds, cuts short batches, pads and weighs; no rule may call that a fault."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_fit import Fit, keras_mean

from trainsanity.rules import NotTestable, RunHistory, all_rules, rule
from trainsanity.wire import Block

fits = st.builds(
    Fit,
    seed=st.integers(0, 2**32 - 1),
    epochs=st.integers(1, 3),
    rows=st.integers(1, 120),
    size=st.integers(1, 64),
    time=st.integers(1, 12),
    padded=st.floats(0, 0.95),
    weights=st.booleans(),
    scale=st.floats(1e-9, 1e9),
    skew=st.floats(0, 4),
    constant=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(fits)
def test_no_rule_alarms_on_honest_rounding(fit):
    assert not loud(fit.history())


def loud(run: RunHistory) -> list[tuple[str, str]]:
    """What is found at warning or above, by rule and message."""
    found = []
    for each in all_rules():
        try:
            findings = list(each.check(run.view()))
        except NotTestable:
            continue
        found += [
            (each.id, one.message)
            for one in findings
            if (one.severity or each.severity) in ("warning", "critical")
        ]
    return found


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-4])
def test_no_alarm_where_every_rounding_errs_to_one_side(value):
    """A constant loss over 200,000 batches: float32 ends up 0.3 % off, honestly."""
    n = 200_000
    ones = np.ones(n, np.float32)
    shown = keras_mean(np.full(n, value, np.float32), ones)
    true = np.full(n, np.float32(value), np.float64)
    assert np.abs(shown - true).max() / value > 1e-4  # the trap is real
    run = RunHistory()
    steps = np.arange(1, n + 1, dtype=np.int64)
    run.append(Block(("loss/reported", "loss/recomputed"), steps, np.stack([shown, true])))
    assert not loud(run)


@settings(max_examples=30, deadline=None)
@given(fits.filter(lambda fit: fit.rows > 6 * fit.size), st.floats(0.01, 0.5))
def test_one_percent_off_is_found_in_the_same_histories(fit, off):
    """The other side of tolerance: what is wrong by a percent is not taken for rounding."""
    run = damaged(fit.history(), "accuracy/reported", lambda v: v * (1 + off))
    (found,) = rule("metric-recompute-mismatch").check(run.view())
    assert found.subject == "accuracy"


def damaged(whole: RunHistory, name: str, change) -> RunHistory:
    """The same history with one signal changed."""
    run = RunHistory(whole.facts)
    for names, group in whole._groups.items():
        steps, values = group.kept()
        values = values.copy()
        if name in names:
            at = names.index(name)
            values[at] = change(values[at])
        run.append(Block(names, steps, values))
    for kept in whole._audits.values():
        for audit in kept:
            run.add_audit(audit)
    return run
