"""Declared clipping against gradients after clipping."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.clip_bound_exceeded import ClipBoundExceeded


def found(kind, bound, sizes):
    run = history({f"clip:{kind}/declared": [bound] * len(sizes), f"clip:{kind}/applied": sizes})
    return list(ClipBoundExceeded().check(run.view()))


@given(
    gradient=st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=50),
    bound=st.floats(1e-3, 10.0),
)
def test_a_gradient_clipped_in_half_precision_stays_within_the_bound(gradient, bound):
    g = np.array(gradient, np.float16).astype(np.float32)
    norm = np.sqrt((g * g).sum())
    clipped = (g * (bound / max(norm, bound))).astype(np.float16).astype(np.float64)
    assert not found("norm", bound, [float(np.sqrt((clipped**2).sum()))])


@pytest.mark.parametrize("kind", ["value", "norm", "global_norm"])
def test_clipping_that_does_nothing_is_found_at_its_first_large_gradient(kind):
    (alert,) = found(kind, 1.0, [0.2, 0.4, 3.0, 0.1])
    assert (alert.first_step, alert.count) == (3, 1)
    assert [w.value for w in alert.witnesses] == [1.0, 3.0]


@pytest.mark.parametrize("bound", [0.0, -1.0])
def test_a_bound_that_keras_skips_is_only_a_warning(bound):
    """Some write clipnorm=0 for no clipping."""
    (alert,) = found("norm", bound, [0.2, 0.4])
    assert alert.severity is Severity.WARNING
    assert "0 or less" in alert.message


def test_steps_without_an_update_say_nothing():
    nan = float("nan")
    assert not found("value", 0.5, [nan, 0.5, nan, float("inf"), nan])


def test_an_optimizer_without_clipping_is_not_testable():
    with pytest.raises(NotTestable, match="no clipping"):
        list(ClipBoundExceeded().check(history(gradient__norm=[1.0]).view()))


def test_the_norm_of_sparse_gradients_is_advice():
    """Keras on TensorFlow takes it before it adds up the rows of one id."""
    name = "clip:global_norm/{}".format
    run = history({name("declared"): [1.0], name("applied"): [1.3], name("by_rows"): [1.0]})
    (alert,) = ClipBoundExceeded().check(run.view())
    assert alert.severity is Severity.ADVICE
    assert "adds up the parts" in alert.message
