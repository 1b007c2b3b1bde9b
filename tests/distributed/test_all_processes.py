"""Rows of several processes become one row for all of them, where every process has told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainsanity.all_processes import MOST_STEPS, AllBatches, blocks_of
from trainsanity.epoch_mean import EpochMean, EpochMeans
from trainsanity.probes.probe import Columns
from trainsanity.tape import TapeRows

NAN = float("nan")


class Hits(EpochMeans):
    """A metric that is hits by rows."""

    name = "hits"

    def columns(self, rows: TapeRows, means: EpochMean) -> Columns:
        n, d = (rows.columns.get(f"_hits:{part}") for part in "nd")
        return {} if n is None or d is None else {"hits/recomputed": means.extend("hits", n, d)}


def of(
    process: AllBatches, number: int, steps: Sequence[int], epoch: int = 0, **columns: Any
) -> None:
    """Hands in rows of one process; `a__b` is the column a/b."""
    named = {name.replace("__", "/"): np.array(v, float) for name, v in columns.items()}
    named.setdefault("batch/size", np.full(len(steps), 4.0))
    process.add(number, blocks_of(TapeRows(np.array(steps, np.int64), named), epoch))


def together(process: AllBatches) -> Mapping[str, list[list[float]]]:
    """[step, value] pairs by signal."""
    found: dict[str, list[list[float]]] = {}
    for steps, columns in process.together():
        for name, values in columns.items():
            pairs = zip(steps.tolist(), values.tolist(), strict=True)
            found.setdefault(name, []).extend(map(list, pairs))
    return found


@pytest.fixture
def two() -> AllBatches:
    run: Any = SimpleNamespace()
    return AllBatches(2, [Hits(run)])


def test_sums_extremes_and_means_are_of_the_rows_of_all(two: AllBatches) -> None:
    for number, size, low, mean in ((0, 4, -1.0, 0.5), (1, 2, -3.0, 2.0)):
        columns = {"outputs__min": [low], "inputs__mean": [mean], "loss__elements": [size]}
        of(two, number, [1], batch__size=[size], inputs__nonfinite=[number], **columns)
    found = together(two)
    assert found["batch/size_in_all"] == [[1, 6.0]]
    assert found["inputs/nonfinite_in_all"] == [[1, 1.0]]
    assert found["outputs/min_in_all"] == [[1, -3.0]]
    assert found["inputs/mean_in_all"] == [[1, 1.0]]  # (4 * 0.5 + 2 * 2.0) / 6


def test_a_share_of_positions_is_unknown_where_rows_have_different_lengths(
    two: AllBatches,
) -> None:
    for number, elements in ((0, [8, 8]), (1, [8, 12])):
        of(two, number, [1, 2], loss__elements=elements, mask__loss_coverage=[0.5, 0.5])
    assert str(together(two)["mask/loss_coverage_in_all"]) == str([[1, 0.5], [2, NAN]])


def test_steps_wait_for_the_slowest_process(two: AllBatches) -> None:
    of(two, 0, [1, 2, 3], outputs__max=[1, 2, 3])
    assert together(two) == {}
    of(two, 1, [1], outputs__max=[5])
    assert together(two)["outputs/max_in_all"] == [[1, 5.0]]
    of(two, 1, [2, 3], outputs__max=[1, 7])
    assert together(two)["outputs/max_in_all"] == [[2, 2.0], [3, 7.0]]
    assert together(two) == {}


def test_what_one_process_has_not_measured_is_left_out(two: AllBatches) -> None:
    of(two, 0, [1, 2], outputs__max=[1, 2], gradient__nonfinite=[0, 0])
    steps, columns = np.array([1, 2]), {"batch/size": np.ones(2), "outputs/max": np.array([5, NAN])}
    gaps = {"outputs/max": np.array([False, True])}
    two.add(1, blocks_of(TapeRows(steps, columns, gaps), 0))
    found = together(two)
    assert found["outputs/max_in_all"] == [[1, 5.0]]
    assert "gradient/nonfinite_in_all" not in found


def test_means_since_the_epoch_began_start_anew_with_it(two: AllBatches) -> None:
    for number, hits in ((0, [1, 2, 4]), (1, [1, 0, 2])):
        for epoch, rows in ((0, slice(0, 2)), (1, slice(2, 3))):
            steps, n = [1, 2, 3][rows], hits[rows]
            of(two, number, steps, epoch, **{"_hits:n": n, "_hits:d": [4] * len(n)})
    assert together(two)["hits/recomputed_in_all"] == [[1, 0.25], [2, 0.25], [3, 0.75]]


def test_no_mean_of_an_epoch_of_which_a_batch_is_missing(two: AllBatches) -> None:
    for number, steps in ((0, [1, 2, 3]), (1, [1, 3])):
        for step in steps:
            of(two, number, [step], **{"_hits:n": [1], "_hits:d": [4]})
        of(two, number, [4], 1, **{"_hits:n": [2], "_hits:d": [4]})
    found = together(two)
    assert [step for step, _ in found["batch/size_in_all"]] == [1, 3, 4]
    assert found["hits/recomputed_in_all"] == [[4, 0.5]]


def test_stops_where_processes_count_a_step_to_different_epochs(two: AllBatches) -> None:
    for number, second in ((0, 0), (1, 1)):
        of(two, number, [1])
        of(two, number, [2], second)
    assert together(two)["batch/size_in_all"] == [[1, 8.0]]
    assert two.parted
    of(two, 0, [3], 1)
    of(two, 1, [3], 1)
    assert together(two) == {}


def test_rows_that_nobody_answers_do_not_pile_up(two: AllBatches) -> None:
    for begin in range(1, 3 * MOST_STEPS, MOST_STEPS):
        of(two, 0, range(begin, begin + MOST_STEPS))
    assert sum(len(steps) for steps, _ in two._parts[0].values()) == 2 * MOST_STEPS
