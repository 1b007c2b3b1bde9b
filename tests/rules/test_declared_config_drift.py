"""What was declared and what objects hold when training begins."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import Severity, history
from trainsanity.rules.declared_config_drift import DeclaredConfigDrift


def found(**item):
    item = {"subject": "optimizer Adagrad", "name": "epsilon", "kind": "expected", **item}
    run = history(audits=[("declared", 0, {"items": [item]})])
    return list(DeclaredConfigDrift().check(run.view()))


@given(st.floats(1e-4, 6e4), st.sampled_from([np.float32, np.float16]))
def test_a_number_stored_in_fewer_bits_is_the_same_number(value, dtype):
    assert not found(declared=value, held=float(dtype(value)))


def test_a_default_that_depends_on_the_spelling_is_a_warning():
    (alert,) = found(kind="default", declared=0.1, held=0.0)
    assert alert.severity is Severity.WARNING


def test_a_dropped_initial_matrix_is_told_with_its_distance():
    difference = {"largest": 0.9, "scale": 1.0, "elements": 640, "dtype": "float32"}
    (alert,) = found(
        subject="layer emb", name="weights", declared="ab", held="cd", difference=difference
    )
    assert "0.9" in alert.message
    assert alert.subject == "layer emb: weights"


def test_other_hashes_of_equal_arrays_are_no_drift():
    """The array came as float64 and is held as float32."""
    difference = {"largest": 1e-8, "scale": 1.0, "elements": 640, "dtype": "float32"}
    assert not found(declared="ab", held="cd", difference=difference)


def test_texts_are_compared_letter_by_letter():
    assert found(name="policy", declared="mixed_float16", held="float32")
    assert not found(name="policy", declared="float32", held="float32")


def test_what_was_not_read_is_not_judged():
    assert not found(declared=0.1, held=None)
