"""Where NaN and infinity begin: what enters each layer, and what leaves it."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainsanity.difference import array_of
from trainsanity.probes.probe import Columns, Probe
from trainsanity.recording import Call, Passes, run_pass
from trainsanity.tape import TapeRows

STAGES = ("outputs", "loss", "gradient", "weights")


class NonfiniteFlow(Probe):
    """Makes the audit `nonfinite_flow` of the sample at first, and again when NaN first appear."""

    name = "nonfinite_flow"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._appeared = False
        self._said = False

    def on_sample(self) -> None:
        self._hand_in(Passes.of(self.run).inference.leaves)

    def on_rows(self, rows: TapeRows) -> Columns:
        columns = (rows.columns.get(f"{stage}/nonfinite") for stage in STAGES)
        if any(column is not None and (column > 0).any() for column in columns):
            self._appeared = True
        return {}

    def on_epoch_sample(self, epoch: int) -> None:
        # The model is whole only now on JAX; weights that are NaN do not heal until then.
        if self._appeared and not self._said and self.run.sample is not None:
            self._said = True
            self._hand_in(run_pass(self.run.model, self.run.sample[0], training=False).leaves)

    def _hand_in(self, calls: list[Call]) -> None:
        self.run.audit(self.name, {"layers": [_row(call) for call in calls]})


def _row(call: Call) -> dict[str, Any]:
    return {
        "name": call.name,
        "class": call.kind,
        "entering": _nonfinite(call.inputs),
        "leaving": _nonfinite(call.outputs),
        "site": call.site,
    }


def _nonfinite(tensors: list[Any]) -> int:
    arrays = (array_of(tensor) for tensor in tensors)
    return sum(int((~np.isfinite(a)).sum()) for a in arrays if a.dtype.kind == "f")
