"""Weights that are trainable and do not learn."""

import pytest

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.dead_weights import DeadWeights

ALIVE = {
    "path": "dense/kernel",
    "layer": "dense",
    "class": "Dense",
    "size": 640,
    "trainable": True,
    "trainable_begin": True,
    "by_nature": True,
    "in_optimizer": True,
    "moved": 0.1,
    "gradient": True,
    "gradient_largest": 0.5,
}
HEAD = ALIVE | {"path": "head/kernel", "layer": "head", "moved": 0.0}
CUT_OFF = HEAD | {"gradient": False, "gradient_largest": None}
ZERO = HEAD | {"gradient_largest": 0.0}


def found(*rows, epochs=1, updates=50, sampled=None, audits=(), **signals):
    facts = {"variables": list(rows), "updates": updates, "sampled": sampled}
    weights = [("weights", updates * (n + 1), facts) for n in range(epochs)]
    return list(DeadWeights().check(history(audits=[*weights, *audits], **signals).view()))


def test_a_head_without_a_loss_is_told_after_one_epoch():
    (alert,) = found(ALIVE, CUT_OFF)
    assert alert.subject == "head"
    assert "No path" in alert.message


def test_short_epochs_add_up():
    """Eight updates an epoch are too few; those of two in a row are not."""
    with pytest.raises(NotTestable):
        found(ALIVE, CUT_OFF, updates=9)
    (alert,) = found(ALIVE, CUT_OFF, updates=9, epochs=2)
    assert "moved by 0 in 18 updates" in alert.message


def test_weights_unfrozen_after_compile_are_told_apart():
    (alert,) = found(ALIVE, CUT_OFF | {"in_optimizer": False})
    assert "compile()" in alert.message


def test_a_gradient_of_exactly_zero_has_to_last_two_epochs():
    """A task may rest for an epoch."""
    assert not found(ALIVE, ZERO, epochs=1)
    (alert,) = found(ALIVE, ZERO, epochs=2)
    assert "exactly 0" in alert.title
    assert alert.severity is None


def test_a_bias_that_cancels_out_beside_a_kernel_that_learns_is_advice():
    """The bias of an encoder whose two encodings are subtracted."""
    (alert,) = found(ALIVE, ZERO | {"path": "dense/bias", "layer": "dense"}, epochs=2)
    assert alert.severity is Severity.ADVICE
    assert "cancels" in alert.message


def test_dead_relu_units_explain_zero_gradients():
    units = ("units", 1, {"layers": [{"name": "hidden", "units": 8, "dead": 8}]})
    (alert,) = found(ALIVE, ZERO, epochs=2, audits=[units])
    assert alert.severity is Severity.ADVICE
    assert "hidden" in alert.message


def test_a_layer_that_never_moves_is_found_without_knowing_its_gradient():
    unknown = ZERO | {"gradient_largest": None}
    bias = unknown | {"path": "head/bias"}
    (alert,) = found(ALIVE, unknown, bias, epochs=2)
    assert alert.severity is None
    (alert,) = found(ALIVE, unknown, bias | {"moved": 0.1}, epochs=2)
    assert alert.severity is Severity.ADVICE  # the kernel may be held by a constraint


def test_says_that_it_was_not_measured_whether_a_gradient_arrives():
    """As where torch compiles the step."""
    (alert,) = found(ALIVE, HEAD | {"gradient": None, "gradient_largest": None}, epochs=2)
    assert "not measured" in alert.message
    assert alert.witnesses[-1].value == "not measured"


def test_a_train_step_of_its_own_may_leave_a_teacher_out():
    own = ("compile", 0, {"custom_train_step": True})
    (alert,) = found(ALIVE, CUT_OFF | {"in_optimizer": False}, audits=[own])
    assert alert.severity is Severity.ADVICE


def test_rows_of_a_table_that_were_never_seen_are_not_dead():
    table = HEAD | {"path": "ids/table", "class": "Embedding", "gradient_largest": 0.5}
    assert not found(ALIVE, table, epochs=3, sampled=64)


def test_pixels_in_the_corner_are_not_dead_weights():
    """Only a sample was looked at, and its inputs are always 0."""
    first = HEAD | {"gradient_largest": None}
    assert not found(ALIVE, first, epochs=3, sampled=64)


def test_a_weight_held_by_its_constraint_is_only_advice():
    (alert,) = found(ALIVE, HEAD | {"gradient_largest": 0.2}, epochs=2)
    assert alert.severity is Severity.ADVICE


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        ([ALIVE, CUT_OFF], {"updates": 9}),  # too few updates (accumulation)
        ([CUT_OFF], {}),  # nothing moves at all: learning rate 0 in warm-up, or a solved hinge
        ([ALIVE, CUT_OFF], {"learning_rate__applied": [0.0] * 50}),
    ],
)
def test_an_epoch_that_trains_nothing_says_nothing(rows, more):
    with pytest.raises(NotTestable):
        found(*rows, **more)


@pytest.mark.parametrize(
    "change", [{"trainable": False}, {"trainable_begin": False}, {"by_nature": False}], ids=str
)
def test_weights_that_are_not_trained_may_rest(change):
    assert not found(ALIVE, CUT_OFF | change)


def flat(loss, *, epochs=2, updates=12, moved=0.0, audits=(), **signals):
    """A loss, and weights that get a gradient of exactly 0."""
    row = ALIVE | {"moved": moved, "gradient_largest": 0.0}
    facts = {"variables": [row], "updates": updates}
    for n in range(epochs):
        step = updates * (n + 1)
        shown = {"epoch": n, "reported": {"loss": loss}}
        audits = [*audits, ("weights", step, facts), ("epoch", step, shown)]
    return list(DeadWeights().check(history(audits=audits, **signals).view()))


def test_no_gradient_at_all_is_told_where_the_loss_is_not_zero():
    (alert,) = flat(2.5, outputs__min=[0.0] * 24, outputs__max=[0.0] * 24)
    assert alert.subject == "model"
    assert alert.severity is None
    assert "Every output has been 0" in alert.message
    assert flat(2.5, moved=0.1), "weight decay moves them"


def test_no_gradient_at_all_names_the_layer_that_is_dead():
    units = ("units", 1, {"layers": [{"name": "output", "units": 1, "dead": 1, "output": True}]})
    (alert,) = flat(2.5, audits=[units])
    assert alert.subject == "output"


def test_a_hinge_that_is_satisfied_gives_no_gradient_either():
    with pytest.raises(NotTestable):
        flat(0.0)


def test_no_gradient_for_one_epoch_is_a_rest():
    assert not flat(2.5, epochs=1)
