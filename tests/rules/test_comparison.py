"""Rounding, persistence and numbers in words."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_fit import exact_mean, keras_mean

from trainsanity.rules import NotTestable, RunHistory, Severity, history
from trainsanity.rules.absent import carries_no
from trainsanity.rules.comparison import (
    accumulated_rounding,
    batches_in_epoch,
    finite_rows,
    mean_tolerance,
    merged,
    not_measured,
    number,
    parting,
    relative_gap,
    share,
    streaks,
    times_in_words,
    trailing_mean,
    two_numbers,
)
from trainsanity.rules.rule import Finding, Witness
from trainsanity.wire import Block


class TestRounding:
    @given(st.integers(1, 3000), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
    def test_the_tolerance_holds_what_float32_really_does(self, batches, scale, seed):
        values = (scale * np.random.default_rng(seed).random(batches)).astype(np.float32)
        sizes = np.full(batches, 32, np.float32)
        shown, true = keras_mean(values, sizes), exact_mean(values, sizes)
        allowed = mean_tolerance(shown, true, batches=np.arange(1, batches + 1))
        assert (np.abs(shown - true) <= allowed).all()

    def test_the_tolerance_grows_with_the_batches(self):
        assert mean_tolerance(1.0, batches=10_000) > mean_tolerance(1.0, batches=10)

    def test_a_thousand_batches_leave_a_tenth_of_a_percent_visible(self):
        assert mean_tolerance(1.0, 1.0, batches=1000) < 1e-3

    def test_half_precision_is_allowed_more(self):
        assert accumulated_rounding(10, "float16") > accumulated_rounding(10, "float32")
        assert accumulated_rounding(10, "mixed_bfloat16") == accumulated_rounding(10, "bfloat16")

    def test_nothing_can_be_said_once_all_digits_are_lost(self):
        assert accumulated_rounding(5000, "float16") == math.inf

    def test_cancelling_values_are_judged_by_their_own_size(self):
        """The mean of +100 and -100 is 0, and wrong by roundings of 100."""
        assert mean_tolerance(0.0, 0.0, 100.0) > 1e-3

    def test_a_relative_gap_of_two_zeros_is_none(self):
        assert relative_gap(0.0, 0.0) == 0.0
        assert relative_gap(1.0, 2.0) == 0.5
        assert math.isnan(relative_gap(math.inf, 1.0))


class TestPersistence:
    def test_streaks_count_up_and_start_again(self):
        flags = np.array([True, True, False, True])
        assert streaks(flags).tolist() == [1, 2, 0, 1]

    def test_a_trailing_mean_needs_its_whole_window(self):
        means = trailing_mean(np.array([1.0, 2.0, 3.0]), 2)
        assert math.isnan(means[0])
        assert means[1:].tolist() == [1.5, 2.5]

    def test_a_window_must_hold_something(self):
        with pytest.raises(ValueError, match="Received: window=0"):
            trailing_mean(np.array([1.0]), 0)

    def part(self, shown, *, patience=1, judged=0):
        run = history(shown=shown, true=[1.0] * len(shown))
        rows = run.view().rows("shown", "true")
        rows = type(rows)(rows.steps, rows.columns, judged)
        return parting(rows, rows["shown"], rows["true"], 0.1, patience=patience)

    def test_one_row_too_few_is_no_parting(self):
        assert self.part([2.0, 2.0, 1.0], patience=3) is None
        assert self.part([2.0, 2.0, 2.0], patience=3).count == 3

    def test_a_streak_may_begin_in_rows_seen_before(self):
        part = self.part([1.0, 2.0, 2.0, 2.0], patience=3, judged=3)
        assert (part.first_step, part.last_step, part.count) == (2, 4, 1)

    @pytest.mark.parametrize(
        ("rows", "stride", "is_told"),
        [(100, 1, True), (99, 1, False), (20, 6, True), (20, 5, False), (19, 64, False)],
    )
    def test_rows_of_turns_that_span_as_many_steps_will_do(self, rows, stride, is_told):
        run = RunHistory()
        steps = np.arange(rows) * stride + 1
        run.append(Block(("shown", "true"), steps, np.repeat([[2.0], [1.0]], rows, axis=1)))
        found = run.view().rows("shown", "true")
        part = parting(found, found["shown"], found["true"], 0.1, patience=100)
        assert (part is not None) is is_told

    def test_what_was_seen_before_is_no_news(self):
        assert self.part([2.0, 2.0, 1.0], judged=2) is None

    def test_nan_neither_parts_nor_ends_a_streak(self):
        assert self.part([2.0, math.nan, 2.0], patience=2).count == 2
        assert self.part([math.nan] * 3) is None

    def test_the_newest_values_are_told(self):
        part = self.part([2.0, 3.0])
        assert (part.shown, part.true) == (3.0, 1.0)
        assert "20 times the 0.1 allowed for taste" in part.certainty("taste")

    def test_dropped_rows_keep_what_is_new(self):
        rows = history(a=[1.0, math.nan, 3.0, 4.0]).view().rows("a")
        kept = finite_rows(type(rows)(rows.steps, rows.columns, 2))
        assert kept.steps.tolist() == [1, 3, 4]
        assert kept.first_new == 1


class TestEpochs:
    def test_batches_are_counted_from_the_end_of_the_epoch_before(self):
        run = history(audits=[("epoch", 4, {"last_step": 4}), ("epoch", 8, {"last_step": 8})])
        counted = batches_in_epoch(run.view(), np.array([1, 4, 5, 8, 9]))
        assert counted.tolist() == [1, 4, 1, 4, 1]

    def test_without_an_end_all_steps_count(self):
        assert batches_in_epoch(history().view(), np.array([7])).tolist() == [7]


class TestWords:
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (0.56, "0.56"),
            (2.0, "2"),
            (12345.6, "12,346"),
            (999.7, "1,000"),
            (1.2e-7, "1.2e-07"),
            (1e300, "1.00e+300"),
            (math.nan, "NaN"),
            (-math.inf, "-infinity"),
        ],
    )
    def test_numbers_are_short(self, value, words):
        assert number(value) == words

    @given(st.floats(allow_nan=False), st.floats(allow_nan=False))
    def test_two_different_numbers_never_look_the_same(self, a, b):
        left, right = two_numbers(a, b)
        assert (left == right) == (a == b)

    @pytest.mark.parametrize(
        ("value", "words"),
        [(0.34, "34 %"), (1.0, "100 %"), (0.0, "0 %"), (0.0012, "0.12 %"), (0.9999, "99.99 %")],
    )
    def test_a_share_is_never_all_or_nothing_unless_it_is(self, value, words):
        assert share(value) == words


class TestFindings:
    def found(self, *, step, severity=None):
        witnesses = (Witness("a", 1.0), Witness("b", 2.0))
        return Finding("x", "t", "m", witnesses, "s", step, step, severity=severity)

    def test_findings_about_one_subject_become_one(self):
        (one,) = merged([self.found(step=3), self.found(step=5)])
        assert (one.first_step, one.last_step, one.count) == (3, 5, 2)

    def test_the_worse_finding_is_kept(self):
        (one,) = merged([self.found(step=3), self.found(step=5, severity=Severity.ADVICE)])
        assert one.severity is None
        assert one.last_step == 5

    def test_the_reason_of_a_probe_is_passed_on(self):
        reasons = {"loss/recomputed": "the loss reduces itself"}
        run = history(audits=[("columns", 1, {"not_testable": reasons})])
        answer = not_measured(run.view(), "loss/recomputed")
        assert isinstance(answer, NotTestable)
        assert "the loss reduces itself" in str(answer)


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.62, "1.6 times"), (234.0, "230 times"), (2_490_368.0, "more than a million times")],
)
def test_says_by_how_much_as_exactly_as_it_matters(factor, words):
    assert times_in_words(factor) == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (carries_no("oracle", kind="audit "), "the run carries no audit oracle"),
        (
            carries_no("epoch", kind="audit "),
            "the run carries no audit epoch (comes with epochs of training)",
        ),
        (
            carries_no("loss/reported", "val_loss/reported"),
            "the run carries no loss/reported with val_loss/reported (comes with validation)",
        ),
        (
            carries_no("<metric>/reported", "<metric>/weighted"),
            "the run carries no <metric>/reported with <metric>/weighted "
            "(comes where sample weights are given)",
        ),
    ],
)
def test_says_when_what_is_absent_would_come(text: str, expected: str) -> None:
    assert text == expected
