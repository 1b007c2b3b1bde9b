"""Flags against movement."""

import pytest

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.frozen_weights_moved import FrozenWeightsMoved

FROZEN = {
    "path": "conv/kernel",
    "layer": "conv",
    "trainable": False,
    "trainable_begin": False,
    "by_nature": True,
    "in_optimizer": True,
    "moved": 0.02,
}


def found(*rows, **compiled):
    audits = [("weights", 10, {"variables": list(rows)})]
    if compiled:
        audits.append(("compile", 0, compiled))
    return list(FrozenWeightsMoved().check(history(audits=audits).view()))


def test_a_layer_frozen_after_the_step_was_compiled_is_critical():
    (alert,) = found(FROZEN)
    assert alert.severity is None
    assert alert.witnesses[1].value == 0.02
    assert "compile()" in alert.suggestion


@pytest.mark.parametrize(
    "change",
    [
        {"trainable": True},  # unfrozen when the epoch began or in it
        {"trainable_begin": True},  # frozen by a callback at the end of the epoch
        {"by_nature": False},  # statistics of batch norm, seeds, counters
        {"moved": 0.0},
        {"moved": float("nan")},
        {"moved": None},
    ],
    ids=str,
)
def test_near_misses_stay_quiet(change):
    assert not found(FROZEN | change, FROZEN | {"path": "other", "moved": 0.0})


def test_a_teacher_that_follows_by_moving_average_is_only_advice():
    """BYOL, MoCo, target networks: frozen, not in the optimizer, moved on purpose."""
    (alert,) = found(FROZEN | {"in_optimizer": False})
    assert alert.severity is Severity.ADVICE


def test_a_train_step_of_its_own_may_switch_flags_itself():
    (alert,) = found(FROZEN, custom_train_step=True)
    assert alert.severity is Severity.WARNING


def test_a_whole_backbone_is_one_alert_instead_of_a_storm():
    rows = [FROZEN | {"layer": f"conv_{n}", "path": f"conv_{n}/kernel"} for n in range(40)]
    (alert,) = found(*rows)
    assert alert.subject == "model"
    assert "37 more" in alert.message


def test_a_model_without_frozen_weights_is_not_testable():
    with pytest.raises(NotTestable, match="no frozen weights"):
        found(FROZEN | {"trainable": True, "trainable_begin": True})
