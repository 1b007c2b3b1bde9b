"""Heuristics: never above advice, and relative to the run itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.dead_units import DeadUnits
from trainsanity.rules.exploding_gradient import ExplodingGradient
from trainsanity.rules.saturated_units import SaturatedUnits
from trainsanity.rules.update_ratio import UpdateRatio
from trainsanity.rules.vanishing_gradient import VanishingGradient

RULES = [DeadUnits, ExplodingGradient, SaturatedUnits, UpdateRatio, VanishingGradient]


def judge(rule, signals=None, audits=()):
    return list(rule.check(history(signals or {}, audits=audits).view()))


@pytest.mark.parametrize("rule", RULES)
def test_all_of_them_only_advise_and_can_be_switched_off(rule):
    assert rule.severity is Severity.ADVICE
    assert rule.heuristic


class TestVanishing:
    def test_tiny_gradients_far_from_a_solution_are_found(self):
        signals = {"gradient/norm": [1e-9] * 150, "loss/reported": [2.3] * 150}
        assert judge(VanishingGradient(), signals)

    def test_a_solved_task_needs_no_gradient(self):
        signals = {"gradient/norm": [1e-9] * 150, "loss/reported": [2.3] + [0.001] * 149}
        assert not judge(VanishingGradient(), signals)

    def test_one_healthy_step_in_between_ends_the_streak(self):
        norms = [1e-9] * 99 + [0.1] + [1e-9] * 99
        assert not judge(VanishingGradient(), {"gradient/norm": norms})

    @pytest.mark.parametrize(("first", "fires"), [(1e-9, True), (1e-4, False)])
    def test_the_first_layer_is_compared_with_the_last(self, first, fires):
        base = {"trainable": True, "trainable_begin": True, "by_nature": True}
        sizes = [first, 1e-3, 1e-2, 0.1, 0.5]
        rows = [
            base | {"path": f"d{n}/kernel", "layer": f"d{n}", "gradient_largest": size}
            for n, size in enumerate(sizes)
        ]
        found = judge(VanishingGradient(), audits=[("weights", 9, {"variables": rows})])
        assert bool(found) is fires

    def test_no_gradient_was_measured(self):
        with pytest.raises(NotTestable):
            judge(VanishingGradient(), {"loss/reported": [1.0]})


class TestExploding:
    def test_lasting_growth_against_the_first_steps_is_found(self):
        (alert,) = judge(ExplodingGradient(), {"gradient/norm": [2.0] * 200 + [9e3] * 20})
        assert alert.first_step == 201

    @given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
    def test_gradients_of_any_size_that_wander_are_quiet(self, seed, size):
        norms = size * np.random.default_rng(seed).lognormal(0, 1, 600)
        assert not judge(ExplodingGradient(), {"gradient/norm": norms})

    def test_spikes_shorter_than_the_patience_are_quiet(self):
        norms = [1.0] * 150 + ([1e6] * 4 + [1.0] * 20) * 5
        assert not judge(ExplodingGradient(), {"gradient/norm": norms})

    def test_overflows_planned_by_loss_scaling_do_not_count(self):
        norms = [1.0] * 150 + [float("inf")] * 20 + [1.0] * 20
        assert not judge(ExplodingGradient(), {"gradient/norm": norms})


def units(**row):
    base = {"name": "dense", "units": 64, "positions": 128, "output": False}
    return ("units", 50, {"layers": [base | row]}), ("units", 100, {"layers": [base | row]})


class TestUnits:
    def test_a_layer_that_is_mostly_dead_in_two_epochs_is_found(self):
        assert judge(DeadUnits(), audits=units(dead=50))
        assert not judge(DeadUnits(), audits=units(dead=50)[:1])

    @pytest.mark.parametrize(
        "row",
        [{"dead": 20}, {"dead": 50, "positions": 32}, {"dead": 4, "units": 4}],
        ids=str,
    )
    def test_near_misses_stay_quiet(self, row):
        assert not judge(DeadUnits(), audits=units(**row))

    def test_a_layer_that_recovered_is_quiet(self):
        bad, good = units(dead=50)[0], units(dead=5)[1]
        assert not judge(DeadUnits(), audits=[bad, good])

    def test_a_saturated_hidden_layer_is_found_and_a_confident_output_is_not(self):
        assert judge(SaturatedUnits(), audits=units(saturated=0.9))
        assert not judge(SaturatedUnits(), audits=units(saturated=0.9, output=True))
        assert not judge(SaturatedUnits(), audits=units(saturated=0.5))


class TestUpdateRatio:
    def found(self, updates, weights=10.0):
        signals = {"update/sampled_norm": updates, "weights/sampled_norm": [weights] * len(updates)}
        return judge(UpdateRatio(), signals)

    @given(st.floats(1e-6, 0.09))
    def test_any_usual_ratio_is_quiet(self, ratio):
        assert not self.found([10.0 * ratio] * 300)

    def test_steps_as_large_as_the_weights_are_found(self):
        assert self.found([5.0] * 300)[0].subject == "large steps"

    def test_steps_below_the_rounding_of_the_weights_are_found(self):
        assert self.found([1e-8] * 300)[0].subject == "small steps"

    def test_steps_without_an_update_are_not_small_ones(self):
        """Accumulation, skipped steps, learning rate 0."""
        assert not self.found([0.0] * 300)
        assert not self.found([0.0, 0.01] * 200)
