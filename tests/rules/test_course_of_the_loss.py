"""Overfitting, standing still, jumping."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, history
from trainsanity.rules.loss_not_decreasing import LossNotDecreasing
from trainsanity.rules.loss_oscillating import LossOscillating
from trainsanity.rules.overfitting import Overfitting


def epochs(losses):
    audits = [
        ("epoch", 10 * (i + 1), {"epoch": i, "reported": {"loss": loss}})
        for i, loss in enumerate(losses)
    ]
    return history(audits=audits).view()


class TestOverfitting:
    def found(self, training, validation):
        run = history(loss__reported=training, val_loss__reported=validation)
        return list(Overfitting().check(run.view()))

    falling = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2]

    def test_rising_validation_while_training_falls_is_told(self):
        (found,) = self.found(self.falling, [1.0, 0.7, 0.8, 0.8, 0.9, 0.9, 1.0])
        assert "its best, at step 2, was 0.7" in found.message

    def test_both_rising_is_no_overfitting(self):
        assert not self.found([0.2, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.2] + [1.0] * 6)

    def test_a_plateau_is_no_rise(self):
        assert not self.found(self.falling, [1.0, 0.7, 0.72, 0.71, 0.74, 0.73, 0.7])

    def test_one_bad_validation_is_no_trend(self):
        assert not self.found(self.falling, [1.0, 0.7, 0.9, 0.7, 0.7, 0.9, 0.7])

    def test_without_validation_it_is_not_testable(self):
        with pytest.raises(NotTestable, match="val_loss"):
            list(Overfitting().check(history(loss__reported=[1.0]).view()))


class TestNotDecreasing:
    def test_a_loss_that_stands_where_it_began_is_told(self):
        (found,) = LossNotDecreasing().check(epochs([2.3] * 6))
        assert found.suggestion

    def test_a_loss_that_has_converged_is_left_in_peace(self):
        losses = [2.3, 1.0, 0.5, *[0.4] * 30]
        assert not list(LossNotDecreasing().check(epochs(losses)))

    def test_warm_up_is_given_time(self):
        assert not list(LossNotDecreasing().check(epochs([2.3, 2.3, 2.3, 2.29, 2.1, 1.9, 1.5])))

    def test_a_loss_next_to_zero_has_nothing_left_to_learn(self):
        with pytest.raises(NotTestable, match="next to 0"):
            list(LossNotDecreasing().check(epochs([1e-5] * 9)))

    def test_five_epochs_say_too_little(self):
        with pytest.raises(NotTestable, match="fewer than 6"):
            list(LossNotDecreasing().check(epochs([2.3] * 5)))


class TestOscillating:
    def test_high_and_low_in_turn_is_told(self):
        (found,) = LossOscillating().check(epochs([1.0, 2.0] * 6))
        assert "between 2 and 1" in found.message

    @given(st.integers(0, 2**32 - 1))
    def test_noise_around_a_falling_loss_is_usual(self, seed):
        random = np.random.default_rng(seed)
        losses = np.exp(-0.1 * np.arange(30)) * (1 + 0.05 * random.standard_normal(30))
        assert not list(LossOscillating().check(epochs(losses.tolist())))

    def test_a_cycle_of_the_learning_rate_is_no_zigzag(self):
        assert not list(LossOscillating().check(epochs([1.0, 0.7, 0.5, 0.9, 0.7, 0.5] * 3)))
