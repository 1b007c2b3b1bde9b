"""Sampled weights before and after a step that no tap is in."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainsanity import optimizers
from trainsanity.norms import l2_norm
from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.shadow import Sampled, choose, values_of
from trainsanity.tape import NOTHING

Vector = np.ndarray[Any, np.dtype[np.float64]]


class WeightsAround(Probe):
    """How far sampled weights move in a step and between two, read on the host."""

    name = "weights_around"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._sampled: list[Sampled] = []
        self._before: Vector | None = None
        self._left: Vector | None = None  # as a step has left them
        self._left_by = 0  # which

    def on_epoch_begin(self, epoch: int) -> None:
        model = self.run.model
        if self.run.backend.follows_code(model):
            self._sampled = choose(model.trainable_variables)
            self._left = None if self._left is None else self._left[: self._size]

    @property
    def _size(self) -> int:
        return sum(map(len, self._sampled))

    def before_step(self, step: int) -> None:
        is_turn = bool(self._sampled) and self.run.pace.is_next_full
        self._before = self._pick() if is_turn else None

    def see_step(self, step: Step) -> Columns:
        before = self._before
        if before is None or not step.training:
            return {}
        after = self._pick()
        outside = NOTHING
        if self._left is not None and self._left_by == self.run.step:
            outside = float(np.abs(before - self._left).max(initial=0.0))
        self._left, self._left_by = after, self.run.step + 1
        return {
            "update/sampled_norm": l2_norm(after - before),
            "weights/sampled_norm": l2_norm(after),
            "weights/nonfinite": float((~np.isfinite(after)).sum()),
            "weights/moved_outside": outside,
            **self._iterations(),
        }

    def _iterations(self) -> Columns:
        optimizer = self.run.optimizer
        if optimizer is None:
            return {}
        iterations = self.run.backend.read(optimizers.working(optimizer).iterations)
        return {"optimizer/iterations": float(iterations)}

    def after_step(self, step: int) -> None:
        """Where the step had no turn and the next one has: what that should find."""
        pace = self.run.pace
        if self._sampled and not pace.full and pace.is_next_full:
            self._left, self._left_by = self._pick(), step

    def _pick(self) -> Vector:
        return values_of(self._sampled, self.run.backend).astype(np.float64)
