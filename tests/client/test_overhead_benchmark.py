"""The benchmark of what the callback costs counts all steps of the timed epochs, nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "overhead"


@pytest.fixture
def timer(monkeypatch: Any) -> Any:
    """Of two epochs, by a clock of which each look takes a second."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import worker

    clock = itertools.count()
    monkeypatch.setattr(worker, "_now", lambda: (float(next(clock)), 0.0))
    return worker.Timer(2)


def test_batches_may_begin_before_the_end_of_the_first_is_told(timer: Any) -> None:
    """As on JAX, where Keras calls `on_train_batch_end` in a thread of its own."""
    timer.on_epoch_begin(1)  # at 1: it has looked once before
    timer.hooked = (2.0, 0.0)
    for batch in range(4):
        timer.on_train_batch_begin(batch)  # looks at 2, once
    timer.on_train_batch_end(0)
    timer.on_epoch_end(1)  # at 3
    assert timer.seconds == 3 - 1


def test_opening_the_data_is_not_counted(timer: Any) -> None:
    timer.on_epoch_begin(1)
    timer.hooked = (1.5, 0.0)
    timer.on_train_batch_begin(0)
    timer.on_train_batch_end(0)
    timer.on_epoch_end(1)
    assert timer.seconds == (3 - 1) - (2 - 1.5)


def test_the_first_half_of_the_epochs_is_not_counted(timer: Any) -> None:
    for epoch in range(2):
        timer.on_epoch_begin(epoch)  # at 1 and 4
        timer.hooked = (3.0 * epoch + 1, 0.0)
        timer.on_train_batch_begin(0)
        timer.on_epoch_end(epoch)  # at 3 and 6
    assert timer.seconds == 6 - 5
