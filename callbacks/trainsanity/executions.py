"""How many batches an execution of the train function has run, with `steps_per_execution`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trainsanity.run import Run


class Counted:
    """An iterator that knows how often it was asked with success."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self.taken = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Any:
        item = next(self._iterator)
        self.taken += 1
        return item


def steps_per_execution(model: Any) -> int:
    return int(model.steps_per_execution or 1)


def counting(run: Run, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where Python code takes several batches for one execution, they are counted."""
    if steps_per_execution(run.model) == 1 or run.backend.READABLE_IN_EPOCH:
        return args
    return (*args[:-1], Counted(args[-1]))


def batches_of(run: Run, data: Any, written: Callable[[], int | None]) -> int:
    """With `steps_per_execution` the last execution of an epoch may be shorter.

    Args:
        data: what the train function was given.
        written: asks the tape how many batches are on it since the run began; None without a tape.
    """
    steps = steps_per_execution(run.model)
    if steps == 1:
        return 1
    if isinstance(data, Counted):
        return data.taken
    total = written()
    if total is not None:
        return total - run.step
    left = run.epoch_first_step + int(run.shared.get("declared_steps") or 0) - 1 - run.step
    return min(steps, left) if left > 0 else steps
