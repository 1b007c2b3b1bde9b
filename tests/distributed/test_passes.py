"""A pass of validation: one row of a process, and of the rows of all processes what they show."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainsanity.all_processes import blocks_of
from trainsanity.passes import AllPasses, Pass
from trainsanity.probes.losses import Losses
from trainsanity.probes.metrics import Metrics
from trainsanity.tape import TapeRows


def rows(sizes: Sequence[float], lost: int = 0, gaps: Any = None, **columns: Any) -> TapeRows:
    """Batches of a test pass; `a__b` is the column _a:b."""
    named = {f"_{name.replace('__', ':')}": np.array(v, float) for name, v in columns.items()}
    steps = np.arange(1, len(sizes) + 1)
    return TapeRows(steps, {"batch/size": np.array(sizes, float), **named}, gaps or {}, lost)


def whole(step: int, *bits: TapeRows | None) -> TapeRows | None:
    """The pass of which these bits were read."""
    made = Pass()
    for bit in bits:
        made.add(bit)
    return made.row(step)


def hits(step: int, n: float, d: float, **columns: Any) -> TapeRows | None:
    """A pass of one batch with n hits of d rows."""
    counted = {"accuracy__recomputed__n": [n], "accuracy__recomputed__d": [d]}
    return whole(step, rows([d], **counted, **columns))


@pytest.fixture
def two() -> AllPasses:
    run: Any = SimpleNamespace(shared={"metric_facts": {"accuracy": {}}})
    made = AllPasses(2, [Metrics(run), Losses(run)])
    made.keys = {"accuracy", "loss"}
    return made


def hand_in(passes: AllPasses, process: int, *given: TapeRows | None, epoch: int = 0) -> None:
    for row in given:
        assert row is not None
        passes.add(process, blocks_of(row, epoch))


def shown(passes: AllPasses) -> list[tuple[int, dict[str, float]]]:
    return [
        (int(steps[0]), {name: round(float(value[0]), 6) for name, value in columns.items()})
        for steps, columns in passes.together()
    ]


def test_a_pass_is_one_row_however_it_was_read() -> None:
    bits = (
        rows([4, 4], loss__recomputed=[1.0, 2.0], hits__n=[1, 2]),
        rows([2], loss__recomputed=[5.0], hits__n=[2]),
    )
    found = whole(7, *bits)
    assert found is not None
    assert found.steps.tolist() == [7]
    assert {name: value.tolist() for name, value in found.columns.items()} == {
        "batch/size": [10.0],
        "_loss:recomputed": [2.2],  # (4 * 1 + 4 * 2 + 2 * 5) / 10
        "_hits:n": [5.0],
    }


def test_what_does_not_add_up_or_has_gaps_is_left_out() -> None:
    gaps = {"_gap:n": np.array([False, True])}
    bit = rows([4, 4], gaps=gaps, gap__n=[1, np.nan], kept__n=[1, 1], fingerprint=[3, 4])
    once = rows([4], once__n=[1], gap__n=[1], kept__n=[1])
    found = whole(1, bit, once)
    assert found is not None
    assert {*found.columns} == {"batch/size", "_kept:n"}


@pytest.mark.parametrize(
    "bits",
    [
        [],
        [rows([4]), rows([4], lost=2)],
        [rows([4]), None, rows([4])],
        [rows([4]), TapeRows(np.array([2]), {"_hits:n": np.ones(1)})],
    ],
    ids=["none was read", "some were overwritten", "a reading failed", "without sizes"],
)
def test_a_pass_of_which_a_batch_is_missing_is_not_known(bits: list[TapeRows | None]) -> None:
    assert whole(1, *bits) is None


def test_passes_of_different_sizes_are_put_together_by_their_rows(two: AllPasses) -> None:
    hand_in(two, 0, hits(3, 6, 10, loss__recomputed=[1.0]))
    assert shown(two) == []
    hand_in(two, 1, hits(3, 0, 2, loss__recomputed=[4.0]))
    assert shown(two) == [
        (3, {"val_accuracy/recomputed_in_all": 0.5, "val_loss/recomputed_in_all": 1.5})
    ]
    assert (two.known, two.told) == (1, [1, 1])


def test_every_pass_begins_anew(two: AllPasses) -> None:
    for process in (0, 1):
        for epoch, n in enumerate((1, 4)):
            hand_in(two, process, hits(3 * epoch + 3, n, 4), epoch=epoch)
    name = "val_accuracy/recomputed_in_all"
    assert shown(two) == [(3, {name: 0.25}), (6, {name: 1.0})]


def test_passes_of_long_epochs_wait_for_a_slower_process(two: AllPasses) -> None:
    for process in (0, 1):
        hand_in(two, process, hits(50_000, 1, 4), hits(100_000, 1, 4))
    assert [step for step, _ in shown(two)] == [50_000, 100_000]


def test_a_pass_that_one_process_has_not_told_of_is_left_out(two: AllPasses) -> None:
    hand_in(two, 0, hits(3, 1, 4), hits(6, 1, 4))
    hand_in(two, 1, hits(6, 3, 4))
    assert [step for step, _ in shown(two)] == [6]
    assert (two.known, two.told) == (1, [2, 1])


def test_of_several_passes_after_one_step_the_first_counts(two: AllPasses) -> None:
    """Even before any step, as in a loop of the user's own."""
    hand_in(two, 0, hits(0, 1, 4), hits(0, 4, 4), hits(3, 2, 4))
    assert shown(two) == []
    hand_in(two, 1, hits(0, 1, 4), hits(0, 4, 4), hits(3, 2, 4))
    name = "val_accuracy/recomputed_in_all"
    assert shown(two) == [(0, {name: 0.25}), (3, {name: 0.5})]


def test_only_what_the_first_process_shows_has_a_witness_of_all(two: AllPasses) -> None:
    two.keys = {"loss"}
    for process in (0, 1):
        hand_in(two, process, hits(3, 1, 4, loss__recomputed=[2.0]))
    assert shown(two) == [(3, {"val_loss/recomputed_in_all": 2.0})]
