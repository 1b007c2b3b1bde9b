"""Every way to train: evidence as calculated by hand, and training as without the callback."""

from __future__ import annotations

import keras
import pytest
from tests.fits.cells.cell import Cell, cells_of, run


@pytest.mark.parametrize("cell", cells_of(keras.backend.backend()), ids=lambda cell: cell.slug)
def test_measures_what_happens_and_changes_nothing_in(cell: Cell) -> None:
    run(cell)
