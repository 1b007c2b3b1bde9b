"""tf.distribute.MirroredStrategy: one run, whose evidence is of all replicas together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.distributed.telling import answer_of

SAME = {"rtol": 2e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def found() -> Any:
    return answer_of("mirrored", KERAS_BACKEND="tensorflow")


def test_trains_the_same_on_every_replica(found: Any) -> None:
    assert found["watched"] == found["plain"]
    assert found["watched in the scope"] == found["plain"]


@pytest.mark.parametrize("fit", ["still", "watched: run", "watched in the scope: run"])
def test_every_probe_works_and_nothing_is_wrong(found: Any, fit: str) -> None:
    assert found[fit]["failed"] == []
    assert found[fit]["said"] == []
    for rule in ("metric-recompute-mismatch", "mask-coverage-mismatch", "step-count-mismatch"):
        assert found[fit]["verdicts"][rule][0] == "ok", found[fit]["verdicts"][rule]


def test_counts_are_sums_over_the_replicas(found: Any) -> None:
    signals = found["still"]["signals"]
    assert signals["batch/size"] == [8, 8, 1]
    assert signals["loss/elements"] == [48, 48, 6]
    assert found["watched: run"]["signals"]["batch/size"] == [8, 8, 5] * 2


def test_loss_and_accuracy_are_those_of_all_rows(found: Any) -> None:
    still = found["still"]
    x, y = np.array(still["x"]), np.array(still["y"])
    outputs = np.array(still["outputs"])
    losses = -np.log(np.take_along_axis(outputs, y[..., None], axis=-1))[..., 0]
    right = outputs.argmax(axis=-1) == y
    # Each replica divides by its own positions; Keras weighs by rows (keras/src/losses/loss.py).
    parts = [(0, 4), (4, 8), (8, 12), (12, 16), (16, 17)]
    means = [losses[a:b][x[a:b] > 0].mean() for a, b in parts]
    batches = [np.mean(means[:2]), np.mean(means[2:4]), means[4]]
    signals = still["signals"]
    np.testing.assert_allclose(signals["loss/batch"], batches, **SAME)
    np.testing.assert_allclose(signals["loss/recomputed"][-1], still["history"]["loss"][0], **SAME)
    ends = (8, 16, 17)
    counted = [right[:end][x[:end] > 0].mean() for end in ends]
    np.testing.assert_allclose(signals["accuracy/recomputed"], counted, **SAME)
    np.testing.assert_allclose(
        signals["accuracy/all"], [right[:end].mean() for end in ends], **SAME
    )
    assert signals["accuracy/reported"] == pytest.approx(still["history"]["accuracy"])
    # The last batch is no mean of equal parts: one replica got no row.
    np.testing.assert_allclose(signals["loss/differentiated"][:2], batches[:2], **SAME)
    assert signals["loss/differentiated"][2] is None


def test_masks_cover_the_rows_of_all_replicas(found: Any) -> None:
    real = np.array(found["still"]["x"]) > 0
    expected = [real[a:b].mean() for a, b in ((0, 8), (8, 16), (16, 17))]
    for witness in ("input_coverage", "loss_coverage", "metric_coverage"):
        np.testing.assert_allclose(found["still"]["signals"][f"mask/{witness}"], expected, **SAME)


def test_says_why_the_update_is_not_tested(found: Any) -> None:
    verdict, reason = found["still"]["verdicts"]["exploding-gradient"]
    assert verdict == "not_testable"
    assert "added up inside the optimizer's update" in reason
