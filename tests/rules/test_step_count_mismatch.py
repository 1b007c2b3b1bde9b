"""Declared, counted, told and applied steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.step_count_mismatch import StepCountMismatch

KERAS_OWN = ("compile", 0, {"custom_train_step": False, "optimizers": 1})
EPOCH = {
    "epoch": 0,
    "batches": 8,
    "declared_steps": 8,
    "iterations_before": 0,
    "iterations_after": 8,
    "gradient_accumulation": None,
    "loss_scale_skips": 0,
    "steps_per_execution": 1,
    "progress_total": 8,
    "stopped": False,
}


def found(*epochs, audits=(KERAS_OWN,)):
    rows = [("epoch", 8 * (n + 1), EPOCH | e) for n, e in enumerate(epochs)]
    return list(StepCountMismatch().check(history(audits=[*audits, *rows]).view()))


def test_a_finite_data_set_gives_short_epochs_in_between():
    """8, 2, 8, 2 batches, in Keras 3.15."""
    short = {"batches": 2, "iterations_after": 2}
    (alert,) = found({}, short, {}, short)
    assert alert.count == 2
    assert [w.value for w in alert.witnesses] == [8, 2]


@given(
    before=st.integers(0, 1000),
    batches=st.integers(1, 300),
    skips=st.integers(0, 20),
    every=st.integers(1, 8),
)
def test_skips_and_accumulation_account_for_every_update(before, batches, skips, every):
    """Keras' counter is the floor of applied batches by the accumulation."""
    skips = min(skips, batches)
    after = before + batches - skips
    assert not found(
        {
            "batches": batches,
            "declared_steps": batches,
            "progress_total": batches,
            "iterations_before": before // every,
            "iterations_after": after // every,
            "gradient_accumulation": every,
            "loss_scale_skips": skips,
        }
    )


def test_unknown_skips_excuse_missing_updates_but_no_extra_ones():
    assert not found({"loss_scale_skips": None, "iterations_after": 3})
    (alert,) = found({"loss_scale_skips": None, "iterations_after": 9})
    assert alert.subject == "optimizer.iterations"


def test_a_callback_that_trains_too_is_noticed():
    (alert,) = found({"iterations_after": 12})
    assert "train_on_batch" in alert.message


def test_tensorflow_counts_the_step_in_which_the_data_end():
    """Live in Keras 3.15: 14 batches of unknown length, 15 on the counter."""
    (alert,) = found({"declared_steps": None, "iterations_after": 9})
    assert alert.severity is Severity.ADVICE
    assert "unknown length" in alert.message
    (alert,) = found({"iterations_after": 9})
    assert alert.severity is None


@pytest.mark.parametrize(
    "audits",
    [
        (),
        (("compile", 0, {"custom_train_step": True, "optimizers": 1}),),
        (("compile", 0, {"custom_train_step": False, "optimizers": 2}),),
        (KERAS_OWN, ("model", 0, {"trainable_parameters": 0})),
    ],
)
def test_counters_are_left_alone_where_keras_does_not_count_batches(audits):
    """A GAN whose first optimizer moves every fifth batch; nothing to train."""
    assert not found({"iterations_after": 1}, audits=audits)


def test_a_run_that_was_stopped_in_an_epoch_may_be_short():
    assert not found({"batches": 3, "iterations_after": 3, "stopped": True})


def test_whole_executions_are_rounded_up_and_only_advised():
    (alert,) = found(
        {
            "batches": 12,
            "declared_steps": 10,
            "progress_total": 10,
            "iterations_after": 12,
            "steps_per_execution": 4,
        }
    )
    assert alert.severity is Severity.ADVICE
    assert "steps_per_execution" in alert.message


def test_a_total_taken_from_elsewhere_is_an_alarm():
    (alert,) = found({"progress_total": 5})
    assert alert.severity is None
    assert alert.witnesses[0].value == 5


def test_data_without_a_length_are_advised_once_epochs_agree():
    unknown = {"declared_steps": None, "progress_total": None}
    assert not found(unknown)
    (alert,) = found(unknown, unknown)
    assert alert.severity is Severity.ADVICE
    assert not found(unknown, unknown | {"batches": 7, "iterations_after": 7})


def test_epochs_whose_batches_nobody_has_counted_say_nothing():
    unknown = {"batches": None, "declared_steps": None, "progress_total": None}
    assert not found(*[unknown] * 6)


def test_a_test_pass_counts_too():
    facts = {"batches": 5, "declared_steps": 5, "progress_total": 160}
    run = history(audits=[("evaluate", 5, facts)])
    (alert,) = StepCountMismatch().check(run.view())
    assert alert.subject == "progress of evaluate"


def test_nothing_has_ended_yet():
    with pytest.raises(NotTestable, match="ended"):
        list(StepCountMismatch().check(history(loss__reported=[1.0]).view()))
