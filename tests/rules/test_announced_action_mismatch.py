"""What callbacks print and what they did."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import history
from trainsanity.rules.announced_action_mismatch import AnnouncedActionMismatch


def found(*actions):
    base = {"by": "ReduceLROnPlateau", "text": "reducing", "kind": "learning_rate", "change": True}
    run = history(audits=[("announced", 9, {"actions": [base | a for a in actions]})])
    return list(AnnouncedActionMismatch().check(run.view()))


@given(st.floats(1e-8, 1.0), st.floats(0.1, 0.9))
def test_a_reduction_that_happened_is_quiet_at_any_rate(rate, factor):
    after = float(np.float32(rate * factor))
    assert not found({"announced": rate * factor, "before": rate, "after": after})


def test_a_reduction_at_the_lowest_rate_is_told_once_for_all_epochs():
    stuck = {"announced": 1e-5, "before": 1e-5, "after": 1e-5}
    (alert,) = found(stuck, stuck)
    assert alert.count == 2
    assert "stayed" in alert.title


def test_a_scheduler_that_prints_the_same_rate_each_epoch_promises_no_change():
    same = {"announced": 0.1, "before": 0.1, "after": 0.1, "change": False}
    assert not found({"by": "LearningRateScheduler", **same})


@pytest.mark.parametrize(("applied", "told"), [(0.01, 1), (0.001, 0), (0.0005, 0)])
@pytest.mark.parametrize("handed_in_at", [8, 12])
def test_a_rate_that_is_set_back_is_told(applied, told, handed_in_at):
    """Rates that a schedule of epochs makes of the new one are no setting back."""
    action = {"by": "ReduceLROnPlateau", "kind": "learning_rate_set", "step": 8}
    action |= {"before": 0.01, "after": 0.001}
    run = history(
        {"learning_rate/applied": [0.01] * 8 + [applied] * 4},
        audits=[("announced", handed_in_at, {"actions": [action]})],
    )
    alerts = list(AnnouncedActionMismatch().check(run.view()))
    assert [alert.subject for alert in alerts] == [
        "ReduceLROnPlateau: the learning rate set back"
    ] * told


def test_weights_said_to_be_restored_are_compared_by_hash():
    kind = {"by": "EarlyStopping", "kind": "weights", "before": "aa", "change": False}
    assert not found(kind | {"announced": "bb", "after": "bb"})
    (alert,) = found(kind | {"announced": "bb", "after": "aa"})
    assert alert.witnesses[0].value == "bb"
