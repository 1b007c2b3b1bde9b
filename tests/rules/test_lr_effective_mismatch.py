"""Declared, applied and effective learning rate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.lr_effective_mismatch import LrEffectiveMismatch
from trainsanity.wire import Block

RULE = LrEffectiveMismatch()


def found(run):
    return list(RULE.check(run.view()))


def rates(declared, applied, effective=None, **more):
    signals = {"learning_rate/declared": declared, "learning_rate/applied": applied}
    if effective is not None:
        signals["learning_rate/effective"] = effective
    return history(signals, **more)


def test_a_callable_that_only_the_host_reads_is_critical_and_named():
    kind = ("optimizer", 0, {"learning_rate_kind": "callable"})
    (alert,) = found(rates([0.0] * 20, [0.1] * 20, audits=[kind]))
    assert alert.severity in (None, Severity.CRITICAL)
    assert [w.value for w in alert.witnesses] == [0.0, 0.1]
    assert "callable" in alert.message
    assert alert.first_step == 1


@given(
    rate=st.floats(1e-6, 10.0),
    decay=st.sampled_from(["cosine", "exponential", "inverse"]),
    steps=st.integers(10, 3000),
)
def test_a_schedule_in_float32_and_one_in_float64_are_the_same_rate(rate, decay, steps):
    t = np.arange(steps)
    with np.errstate(under="ignore"):
        exact = {
            "cosine": rate * 0.5 * (1 + np.cos(np.pi * t / steps)),
            "exponential": rate * 0.96 ** (t / 100),
            "inverse": rate / (1 + 0.5 * t),
        }[decay]
        x, r, one = t.astype(np.float32), np.float32(rate), np.float32(1)
        rounded = {
            "cosine": r
            * np.float32(0.5)
            * (one + np.cos(np.float32(np.pi) * x / np.float32(steps))),
            "exponential": r * np.float32(0.96) ** (x / np.float32(100)),
            "inverse": r / (one + np.float32(0.5) * x),
        }[decay]
    assert not found(rates(exact, rounded))


def test_a_rate_read_one_step_late_is_no_contradiction():
    """A warm-up from 0, where the host reads the rate of the step before."""
    warm_up = np.linspace(0.0, 0.1, 50)
    assert not found(rates(np.concatenate([[0.0], warm_up[:-1]]), warm_up))


def test_a_host_that_reads_the_rate_now_and_then_is_enough():
    """Every 64 steps; the graph writes every step."""
    run = rates([], [0.1] * 200)
    run.append(Block(("learning_rate/declared",), np.array([1, 65]), np.array([[0.0, 0.0]])))
    (alert,) = found(run)
    assert (alert.first_step, alert.last_step, alert.count) == (1, 65, 2)


def test_weights_in_half_precision_move_in_jumps():
    """Updates below the rounding of bfloat16 are lost, others are rounded up."""
    model = ("model", 0, {"layers": [{"name": "dense", "dtype": "bfloat16"}]})
    assert not found(rates([0.1] * 30, [0.1] * 30, [0.3] * 30, audits=[model]))


def test_a_single_odd_step_is_not_enough():
    assert not found(rates([0.1] * 9 + [0.2] + [0.1] * 9, [0.1] * 19))


def test_momentum_that_goes_on_at_rate_zero_is_healthy():
    zero = [0.1] * 10 + [0.0] * 10
    assert not found(rates(zero, zero, [0.1] * 10 + [float("nan")] * 10))


@given(st.floats(-0.01, 0.01))
def test_the_error_of_the_least_exact_shadow_is_allowed(error):
    assert not found(rates([0.1] * 30, [0.1] * 30, [0.1 * (1 + error)] * 30))


@given(st.one_of(st.floats(0.01, 0.85), st.floats(1.2, 100.0)))
def test_a_factor_on_the_update_is_a_warning_with_the_true_rate(factor):
    (alert,) = found(rates([0.1] * 30, [0.1] * 30, [0.1 * factor] * 30))
    assert alert.severity is Severity.WARNING
    assert alert.witnesses[1].value == pytest.approx(0.1 * factor)


def test_an_attribute_that_keras_ignores_is_named():
    stray = {"stray": [{"attribute": "lr", "value": 0.001, "meant": "learning_rate"}]}
    (alert,) = found(rates([0.1] * 5, [0.1] * 5, audits=[("optimizer", 3, stray)]))
    assert alert.subject == "optimizer.lr"
    assert "optimizer.learning_rate = 0.001" in alert.suggestion


def test_an_ignored_attribute_that_says_the_same_rate_misleads_nobody():
    stray = {"stray": [{"attribute": "lr", "value": 0.1, "meant": "learning_rate"}]}
    assert not found(rates([0.1] * 5, [0.1] * 5, audits=[("optimizer", 3, stray)]))


def test_one_witness_alone_is_not_testable():
    with pytest.raises(NotTestable, match="two witnesses"):
        found(history(learning_rate__declared=[0.1] * 5))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_the_verdict_does_not_depend_on_the_packets(sizes):
    whole = rates([0.0] * 40, [0.1] * 40)
    cut, step, hits = history(), 1, 0
    names = ("learning_rate/declared", "learning_rate/applied")
    for size in [*sizes, max(1, 40 - sum(sizes))]:
        size = min(size, 41 - step)
        if size <= 0:
            break
        steps = np.arange(step, step + size)
        cut.append(Block(names, steps, np.array([[0.0] * size, [0.1] * size])))
        hits += len(found(cut))
        cut.mark_judged()
        step += size
    assert bool(hits) == bool(found(whole))


class TestNothingMoves:
    """A rate and a gradient above 0, and weights whose bits stay the same."""

    @staticmethod
    def still(steps=40, *, moved=0.0, gradient=2.0, rate=0.05, epochs=2, dtype="float32"):
        audits = [("epoch", steps // epochs * (i + 1), {"epoch": i}) for i in range(epochs)]
        audits.append(("model", 0, {"layers": [{"name": "dense", "dtype": dtype}]}))
        signals = {
            "learning_rate/declared": [rate] * steps,
            "learning_rate/applied": [rate] * steps,
            "update/sampled_norm": [0.0] * (steps - 1) + [moved],
            "gradient/sampled_norm": [gradient] * steps,
        }
        return found(history(signals, audits=audits))

    def test_is_a_warning_with_rate_movement_and_gradient(self):
        (alert,) = self.still()
        assert alert.severity is Severity.WARNING
        assert [w.value for w in alert.witnesses] == [0.05, 0.0, 2.0]

    def test_names_half_precision_where_weights_are_in_it(self):
        (alert,) = self.still(dtype="bfloat16")
        assert "0.999" in alert.message
        assert "mixed_bfloat16" in alert.suggestion

    def test_one_movement_is_enough_to_be_left_in_peace(self):
        assert not self.still(moved=1e-9)

    def test_no_gradient_no_rate_or_too_little_time_say_nothing(self):
        assert not self.still(gradient=0.0)
        assert not self.still(gradient=float("inf"))
        assert not self.still(rate=0.0)
        assert not self.still(steps=20)
        assert not self.still(epochs=1)
