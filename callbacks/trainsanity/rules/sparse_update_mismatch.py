from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
    maps,
    measured,
    merged,
    real,
    relative_gap,
    share,
    text,
    two_numbers,
    whole,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class SparseUpdateMismatch(Rule):
    """Rows of an embedding that a batch uses more than once do not move as the optimizer says.

    Compares: how far a fresh optimizer moves a row by the gradient as it comes, a part for each
    use of the row, with how far it moves it by the sum of these parts, which is the gradient.

    Why: the learning rate of a row then depends on how often its id occurs in a batch: that of
    common words (and padding) is up to √n times the one you set, and other backends train
    otherwise.

    Try: an optimizer whose `update_step` adds the parts up first; SGD, for which both are the
    same; or JAX or torch.

    Source: found with it in Keras 3.15 on TensorFlow, whose optimizers square an `IndexedSlices`
    part by part; Keras 2 added them up (`_deduplicate_sparse_grad`). Only advice, as every
    embedding trained there has it.
    """

    id = "sparse-update-mismatch"
    severity = Severity.ADVICE
    needs = ("audit:table_updates",)

    # Relative. Rounding of a sum of thousands of float32 numbers stays below 1e-3; below a tenth
    # nobody would set another learning rate.
    material: float = 0.1

    @staticmethod
    def fires_on() -> RunHistory:
        """Adam, and a row used 40 times in a batch: √40 times as far."""
        return history(audits=[("table_updates", 8, _facts(moved=0.0632))])

    @staticmethod
    def quiet_on() -> RunHistory:
        """SGD, for which the sum is the sum."""
        return history(audits=[("table_updates", 8, _facts(moved=0.0100001))])

    def check(self, run: RunView) -> list[Finding]:
        return merged(
            found
            for audit in measured(run, "table_updates")
            for row in maps(audit.facts, "tables")
            if (found := self._check(audit, row)) is not None
        )

    def _check(self, audit: Audit, row: Mapping[str, Any]) -> Finding | None:
        moved, expected = real(row, "moved"), real(row, "expected")
        if moved is None or expected is None or not np.isfinite(expected):
            return None
        gap = float(relative_gap(moved, expected))
        if gap <= self.material:
            return None
        kind, table = text(audit.facts, "optimizer") or "?", text(row, "variable") or "?"
        times, number = whole(row, "times") or 0, whole(row, "row") or 0
        a, b = two_numbers(moved, expected)
        return Finding(
            subject=table,
            title=f"{table}: {kind} moves row {number} by {a} instead of {b}",
            message=(
                f"Row {number} of {table} is used {times} times in the sampled rows of the first "
                f"batch. One update by a fresh {kind} with learning rate 0.01 moves it by {a}; by "
                f"the sum of its {times} gradients, which is the gradient, it moves by {b}. "
                "Keras on TensorFlow gives the optimizer a gradient for each use of a row, and "
                f"{kind} squares each before they are added up."
            ),
            witnesses=(
                Witness("movement by the gradients of each use", moved),
                Witness("movement by their sum", expected),
            ),
            suggestion=(
                f"Subclass {kind}: in update_step, call super().update_step("
                "tf.convert_to_tensor(gradient), variable, learning_rate), which adds the rows up."
            ),
            first_step=audit.step,
            last_step=audit.step,
            certainty=(
                f"The movements differ by {share(gap)}; {share(self.material)} is allowed, and "
                "float32 rounding accounts for less than 0.1 %."
            ),
        )


def _facts(*, moved: float) -> dict[str, Any]:
    table = {"variable": "embedding/embeddings", "row": 0, "times": 40}
    return {"optimizer": "Adam", "tables": [table | {"moved": moved, "expected": 0.01}]}
