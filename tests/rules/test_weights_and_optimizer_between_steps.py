"""Weights and optimizer state that change where nothing should change them."""

import pytest

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.optimizer_state_reset import OptimizerStateReset
from trainsanity.rules.probe_failed import ProbeFailed
from trainsanity.rules.weights_moved_outside_update import WeightsMovedOutsideUpdate

NAN = float("nan")


def moved(values, *audits):
    run = history(weights__moved_outside=values, audits=audits)
    return list(WeightsMovedOutsideUpdate().check(run.view()))


def test_movement_that_no_callback_made_is_a_warning():
    nobody = ("moved_outside", 3, {"by": ["Logger"], "known": False})
    (alert,) = moved([NAN, 0.0, 0.3, 0.0], nobody)
    assert alert.severity is None
    assert (alert.first_step, alert.subject) == (3, "unknown")


def test_movement_that_nobody_watched_is_only_advice():
    """Spectral normalization writes its kernel when it is called."""
    (alert,) = moved([NAN, 0.0, 0.3, 0.0])
    assert alert.severity is Severity.ADVICE


def test_a_callback_that_was_seen_writing_is_named_and_only_advice():
    by = ("moved_outside", 3, {"by": ["SwapEMAWeights"], "known": True})
    (alert,) = moved([NAN, 0.0, 1e-8, 0.0], by)
    assert (alert.severity, alert.subject) == (Severity.ADVICE, "SwapEMAWeights")


@pytest.mark.parametrize(
    ("own_step", "by", "told"), [(True, 3e-8, 0), (False, 3e-8, 1), (True, 1e-4, 1)]
)
def test_a_step_that_moves_weights_there_and_back_leaves_roundings(own_step, by, told):
    """As sharpness-aware minimization, before it applies the optimizer."""
    step = ("compile", 0, {"custom_train_step": own_step})
    signals = {"weights/moved_outside": [NAN, by, by], "weights/sampled_norm": [1.0, 1.0, 1.0]}
    run = history(signals, audits=[step])
    assert len(list(WeightsMovedOutsideUpdate().check(run.view()))) == told


def test_weights_that_stand_still_between_steps_are_quiet():
    assert not moved([NAN, 0.0, NAN, 0.0])


def test_a_counter_that_falls_is_found_where_it_fell():
    run = history(optimizer__iterations=[5, 6, 7, 1, 2])
    (alert,) = OptimizerStateReset().check(run.view())
    assert [w.value for w in alert.witnesses] == [7, 2]
    assert alert.first_step == 5


def test_a_single_low_reading_is_no_reset():
    """TensorFlow breaks the step off in which it notices that the data have ended."""
    run = history(optimizer__iterations=[5, 6, 0, 8, 9, 0])
    assert not list(OptimizerStateReset().check(run.view()))


def test_skipped_and_accumulated_steps_only_stand_still():
    run = history(optimizer__iterations=[0, 0, 1, 1, 1, 2])
    assert not list(OptimizerStateReset().check(run.view()))


def between(**facts):
    run = history(optimizer__iterations=[1], audits=[("optimizer_state", 0, facts)])
    return list(OptimizerStateReset().check(run.view()))


def test_a_new_compile_between_phases_is_advice():
    (alert,) = between(iterations=0, iterations_left=500, recompiled=True)
    assert alert.severity is Severity.ADVICE
    (alert,) = between(iterations=0, iterations_left=500, recompiled=False)
    assert alert.severity is None


def test_a_counter_without_its_slots_is_found():
    (alert,) = between(iterations=500, slots=8, slots_norm=0.0, slots_norm_left=3.0)
    assert alert.severity is None
    (alert,) = between(iterations=500, slots=8, slots_norm=0.0)
    assert alert.severity is Severity.ADVICE  # a counter set by hand to resume a schedule


@pytest.mark.parametrize(
    "facts",
    [
        {"iterations": 500, "iterations_left": 500, "slots": 8, "slots_norm": 3.0},
        {"iterations": 500, "slots": 0, "slots_norm": 0.0},  # plain SGD
        {"iterations": 0, "slots": 8, "slots_norm": 0.0},  # fresh
        {"iterations": 0, "iterations_left": None},
    ],
    ids=str,
)
def test_near_misses_stay_quiet(facts):
    assert not between(**facts)


def test_no_counter_is_not_testable():
    with pytest.raises(NotTestable):
        list(OptimizerStateReset().check(history(loss__reported=[1.0]).view()))


def test_a_probe_that_was_switched_off_is_told_with_its_error():
    facts = {"probe": "mask_flow", "error": "KeyError: 'add_1'"}
    (alert,) = ProbeFailed().check(history(audits=[("probe_failed", 7, facts)]).view())
    assert "KeyError" in alert.message
    assert ProbeFailed.severity is Severity.ADVICE
