"""Updates of embedding rows that a batch uses more than once."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from trainsanity import backends
from trainsanity.probes.table_updates import movements

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="only TensorFlow gives a gradient for each use"
)

USES = np.array([0] * 16 + [1], "int32")  # one row 16 times, another once
GRADIENTS = np.full((17, 3), 0.5, "float32")


def moved(optimizer: keras.optimizers.Optimizer) -> tuple[np.ndarray, np.ndarray]:
    """How far row 0 and row 1 move by each use and by the sum, relative to the sum."""
    as_given, summed = movements(optimizer, backends.active(), USES, GRADIENTS)
    return as_given / summed


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "adamw", "nadam"])
def test_what_divides_by_a_root_of_squares_moves_a_row_of_sixteen_uses_four_times_as_far(kind):
    assert moved(keras.optimizers.get(kind)) == pytest.approx([4.0, 1.0], rel=0.01)


@pytest.mark.parametrize("kind", ["sgd", "lion"])
def test_what_does_not_square_moves_by_the_sum(kind):
    assert moved(keras.optimizers.get(kind)) == pytest.approx([1.0, 1.0], rel=1e-4)


def test_what_happens_beside_the_gradient_is_left_out():
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.1, clipnorm=1e-3, use_ema=True)
    assert moved(optimizer) == pytest.approx([1.0, 1.0], rel=1e-4)
