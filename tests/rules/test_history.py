"""The memory of a judge, fed with whatever a run may measure."""

from __future__ import annotations

import numpy as np
import pytest

from trainsanity.rules import RunHistory, history
from trainsanity.rules.history import OVERVIEW_BUCKETS
from trainsanity.wire import Block

LARGEST = float(np.finfo(np.float64).max)


@pytest.mark.parametrize("signs", [[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
def test_sums_beyond_the_largest_number_pass_in_silence(signs: list[float]) -> None:
    """Warnings are errors here, and would be noise in a server's log."""
    blocks = 2 * OVERVIEW_BUCKETS  # so that the overview joins some
    judged = RunHistory()
    for i in range(blocks):
        steps = np.arange(len(signs)) + i * len(signs)
        judged.append(Block(("loss/batch",), steps, LARGEST * np.array([signs])))
    view = judged.view()

    assert not np.isfinite(view.totals("loss/batch").sum)
    assert view.overview("loss/batch").count.sum() == blocks * len(signs)
    assert view.totals("loss/batch").max == LARGEST * max(signs)


def test_a_mean_is_that_of_what_is_finite() -> None:
    totals = history(loss__batch=[1.0, np.inf, np.nan, 3.0]).view().totals("loss/batch")
    assert (totals.mean, totals.inf, totals.nan) == (2.0, 1, 1)
