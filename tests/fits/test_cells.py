"""Every way to train: evidence as calculated by hand, and training as without the callback."""

from __future__ import annotations

import keras
import pytest
from tests.fits.cells.by_hand import rows
from tests.fits.cells.cell import Cell, cells_of, run
from tests.fits.cells.corners import Squares

from trainsanity.forward import quiet_forward


@pytest.mark.parametrize("cell", cells_of(keras.backend.backend()), ids=lambda cell: cell.slug)
def test_measures_what_happens_and_changes_nothing_in(cell: Cell) -> None:
    run(cell)


def test_a_forward_pass_of_ours_leaves_metrics_of_layers_alone() -> None:
    layer = Squares()
    model = keras.Sequential([keras.Input((3,)), layer])
    model(rows())
    before = float(layer.largest.result())
    quiet_forward(model, 2 * rows())
    assert float(layer.largest.result()) == before
