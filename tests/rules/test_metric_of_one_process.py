"""An accuracy shown by one process next to that of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from trainsanity.rules import Finding, NotTestable, RunHistory
from trainsanity.rules.history import history
from trainsanity.rules.metric_of_one_process import MetricOfOneProcess
from trainsanity.wire import Audit

METRIC = {"key": "accuracy", "kind": "BinaryAccuracy", "recomputed_by": "reference"}


def run_of(shown: Sequence[float], in_all: Sequence[float], **metric: Any) -> RunHistory:
    """One step of 1,000 rows in each epoch."""
    rows = {"batches": 1, "batch_size_mean": 1000.0}
    epochs = [
        ("epoch", step, {"last_step": step, "reported": {"accuracy": value}, **rows})
        for step, value in enumerate(shown, 1)
    ]
    columns = ("columns", 1, {"metrics": [METRIC | metric]})
    return history(accuracy__recomputed_in_all=in_all, audits=[columns, *epochs])


def validated(shown: Sequence[float], in_all: Sequence[float], rows: float = 1000.0) -> RunHistory:
    """Epochs of one step, in which all processes get the same accuracy, with validation."""
    facts = {"inside_fit": True, "batches": 2, "batch_size_mean": rows / 2}
    return history(
        accuracy__recomputed_in_all=[0.7] * len(shown),
        val_accuracy__reported=shown,
        val_accuracy__recomputed_in_all=in_all,
        audits=[
            ("columns", 1, {"metrics": [METRIC]}),
            *(("evaluate", step, facts) for step in range(1, len(shown) + 1)),
        ],
    )


def told(run: RunHistory) -> list[Finding]:
    return list(MetricOfOneProcess().check(run.view()))


def test_tells_both_numbers_and_since_when() -> None:
    (found,) = told(run_of([0.7, 0.9, 0.92, 0.94], [0.7, 0.7, 0.7, 0.7]))
    assert "0.94" in found.message
    assert (found.first_step, found.last_step, found.count) == (2, 4, 3)
    assert [witness.value for witness in found.witnesses] == [0.94, 0.7]


def test_tells_it_of_validation_by_which_models_are_kept() -> None:
    (found,) = told(validated([0.7, 0.9, 0.92, 0.94], [0.7, 0.7, 0.7, 0.7]))
    assert found.subject == "val_accuracy"
    assert found.message.endswith("all processes it is 0.7 (validation after step 4).")
    assert [(w.name, w.value) for w in found.witnesses] == [
        ("val_accuracy/reported", 0.94),
        ("val_accuracy/recomputed_in_all", 0.7),
    ]


def test_shares_that_are_better_and_worse_in_turn_are_random() -> None:
    assert not told(run_of([0.9, 0.5] * 3, [0.7] * 6))
    assert not told(validated([0.9, 0.5] * 3, [0.7] * 6))


def test_a_gap_that_random_rows_can_have_is_none() -> None:
    assert not told(run_of([0.78] * 6, [0.7] * 6))  # 5.5 standard deviations
    assert not told(validated([0.78] * 6, [0.7] * 6))


def test_a_gap_needs_the_rows_that_make_it_one() -> None:
    """The same rows are validated every time, so that lasting proves nothing."""
    assert told(validated([0.9] * 6, [0.7] * 6, rows=400.0))
    assert not told(validated([0.9] * 6, [0.7] * 6, rows=100.0))


def test_a_few_misses_in_few_rows_are_none_where_misses_are_rare() -> None:
    """Three of 100 instead of one of 1,000: 9 standard deviations, and no miracle."""
    assert not told(validated([0.97] * 6, [0.999] * 6, rows=100.0))


def test_a_gap_that_changes_nothing_is_none_however_many_rows_there_are() -> None:
    assert not told(run_of([0.999] * 6, [1.0] * 6))
    assert not told(validated([0.985] * 6, [1.0] * 6, rows=1e6))


def test_of_several_passes_after_one_step_the_rows_of_the_first_count() -> None:
    run = validated([0.9] * 3, [0.7] * 3, rows=100.0)
    more = {"inside_fit": True, "batches": 2, "batch_size_mean": 500.0}
    for step in (1, 2, 3):
        run.add_audit(Audit("evaluate", step, more))
    assert not told(run)


@pytest.mark.parametrize("metric", [{"weighted": True}, {"recomputed_by": "own function"}])
def test_says_nothing_of_metrics_whose_spread_is_not_known(metric: Any) -> None:
    with pytest.raises(NotTestable, match="several processes"):
        told(run_of([0.9] * 6, [0.1] * 6, **metric))
