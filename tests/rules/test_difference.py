"""What rounding may and may not explain between two tensors."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainsanity.rules.difference import Difference


def network(x, weights, dtype):
    for weight in weights:
        x = np.maximum(x.astype(dtype) @ weight.astype(dtype), 0).astype(dtype)
    return x.astype(np.float64)


def difference(a, b, dtype="float32", **more):
    return Difference(
        largest=float(np.abs(a - b).max()),
        scale=float(max(np.abs(a).max(), np.abs(b).max())),
        elements=a.size,
        dtype=dtype,
        **{"noise": 0.0, **more},
    )


def half_rounded(x, weights, dtype):
    """Half-precision kernels accumulate in float32 and round each layer's result."""
    for weight in weights:
        x = np.maximum(x.astype(np.float32) @ weight.astype(np.float32), 0)
        x = x.astype(dtype).astype(np.float64)
    return x


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 64),
    width=st.integers(1, 64),
    dtype=st.sampled_from(["float32", "float16"]),
)
@example(seed=74, depth=54, width=41, dtype="float16")  # narrow and deep: 71 roundings apart
def test_rounding_in_a_real_network_is_never_a_disagreement(seed, depth, width, dtype):
    """He-initialised relu layers, computed in the dtype and in float64; sensitivity as measured."""
    random = np.random.default_rng(seed)
    weights = [random.normal(0, np.sqrt(2 / width), (width, width)) for _ in range(depth)]
    # What is stored in the dtype is the network; only its arithmetic differs.
    weights = [w.astype(dtype).astype(np.float64) for w in weights]
    x = random.normal(size=(8, width)).astype(dtype)
    exact = network(x.astype(np.float64), weights, np.float64)
    rounded = half_rounded(x.astype(np.float64), weights, dtype)
    moved = np.nextafter(x, np.array(np.inf, dtype)).astype(np.float64)
    sensitivity = float(np.abs(half_rounded(moved, weights, dtype) - rounded).max())
    assert not difference(exact, rounded, dtype, sensitivity=sensitivity).disagrees


def test_numbers_below_the_smallest_normal_are_rounded_evenly():
    """Found in a deep float16 network: values near 5e-6, where float16 knows steps of 6e-8."""
    found = Difference(largest=1.9e-7, scale=5.4e-6, dtype="float16", noise=0.0)
    assert not found.disagrees
    assert Difference(largest=1.9e-5, scale=5.4e-4, dtype="float16", noise=0.0).disagrees


@given(st.floats(1e-30, 1e30), st.floats(0.01, 1.0))
def test_a_percent_of_the_scale_disagrees_in_float32(scale, part):
    assert Difference(largest=part * scale, scale=scale, noise=0.0).disagrees


@given(st.floats(0, 1e30), st.floats(0, 1e30), st.floats(0, 1e30))
def test_noise_and_sensitivity_only_ever_widen_the_tolerance(scale, noise, sensitivity):
    bare = Difference(largest=0.0, scale=scale, noise=0.0)
    wide = Difference(largest=0.0, scale=scale, noise=noise, sensitivity=sensitivity)
    assert wide.tolerance >= bare.tolerance


def test_nan_on_one_side_alone_disagrees_whatever_the_rest_says():
    assert Difference(largest=0.0, scale=1.0, noise=0.0, nonfinite=(0, 3)).disagrees
    assert not Difference(largest=0.0, scale=1.0, noise=0.0, nonfinite=(3, 3)).disagrees


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"noise": None}, "not run twice"),
        ({"noise": 0.2}, "does not agree with itself"),
        ({"noise": 0.0, "dtype": "int32"}, "may flip"),
    ],
)
def test_a_way_that_cannot_testify_says_why(facts, reason):
    map_ = {"largest": 0.0, "scale": 1.0, "elements": 4, "dtype": "float32", **facts}
    assert reason in Difference.of({"difference": map_}).not_testable


@pytest.mark.parametrize("facts", [{}, {"difference": None}, {"difference": {"scale": 1.0}}])
def test_reads_nothing_from_incomplete_facts(facts):
    assert Difference.of(facts) is None
