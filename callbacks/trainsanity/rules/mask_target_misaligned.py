"""Targets shifted against the inputs while the mask is not: credit for padding after the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    Flags,
    Parting,
    name_of,
    number,
    parting,
    quantities_of,
    share,
)
from trainsanity.rules.history import Rows, RunHistory, RunView, history
from trainsanity.rules.masked_numbers import SHARE_TOLERANCE
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness

WITNESSES = ("target_padding", "target_padding_most", "target_next_input")


@dataclass(frozen=True)
class MaskTargetMisaligned(Rule):
    """The loss counts positions whose target is padding: the targets are shifted, the mask is not.

    Compares: the positions that the loss counts (real in the input, by the mask) with the positions
    whose target is real. That targets are the inputs shifted by one is measured, not assumed: only
    then is the pad id padding among the targets too, and not a class of its own.

    Why: where targets are the inputs shifted by one, the last real input of each row has padding as
    its target. The model gets credit for learning that padding follows the end, which is easy, so
    loss and accuracy look better than they are, the more so the shorter the rows.

    Try: make the mask from the targets (`sample_weight=(y != pad_id)`), or cut the last real
    position from the mask.

    Source: one of the cases that started trainsanity. A shift gives exactly one such position for
    each row; more are a lost mask, which mask-coverage-mismatch is about.
    """

    id = "mask-target-misaligned"
    severity = Severity.WARNING
    needs = ("mask*/target_padding", "mask*/target_padding_most", "mask*/target_next_input")

    patience: int = 3  # batches in a row
    follows: float = 0.99  # share of targets equal to the next input; the rest may be noised
    material: float = 0.01  # share of what the loss counts; less is advice; our own judgement
    most_shift: int = 1  # positions a row: a shift by one

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(padding=0.125)

    @staticmethod
    def quiet_on() -> RunHistory:
        # The mask is shifted with the targets: no target that counts is padding.
        return _example(padding=0.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        masks = quantities_of(run, "mask", *WITNESSES)
        shifted = 0
        for mask in masks:
            rows = run.rows(*(f"{mask}/{word}" for word in WITNESSES))
            credit, most, follows = (rows[f"{mask}/{word}"] for word in WITNESSES)
            is_shifted = follows >= self.follows
            shifted += int(is_shifted.any())
            where = is_shifted & (most <= self.most_shift) & _kept_mask(run, mask, rows)
            none = np.zeros_like(credit)
            part = parting(rows, credit, none, SHARE_TOLERANCE, patience=self.patience, where=where)
            if part is not None:
                yield self._finding(mask, part, float(follows[where][-1]))
        if not shifted:
            raise NotTestable(
                "the targets are not the inputs shifted by one, so the pad id may be a real class"
            )

    def _finding(self, mask: str, part: Parting, follows: float) -> Finding:
        output = name_of(mask)
        return Finding(
            subject=f"output {output}" if output else "targets",
            title=f"{share(part.shown)} of the credit is for predicting padding",
            message="The targets are the inputs shifted by one, the mask is not. Since step "
            f"{part.first_step:,} the last position that counts in a row has padding as its "
            f"target: {share(part.shown)} of what the loss and the metrics count, where it should "
            "be 0 %. The model is paid for learning that padding follows the end.",
            witnesses=(
                Witness(f"{mask}/target_padding", part.shown),
                Witness("padding that may be a target where the loss counts", 0.0),
                Witness(f"{mask}/target_next_input", follows),
            ),
            suggestion="Shift the mask with the targets: pass sample_weight=(y != pad_id) and "
            "compile the metrics under weighted_metrics=, or let the mask end one position earlier "
            "in each row.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            severity=None if part.shown >= self.material else Severity.ADVICE,
            certainty=f"{share(follows)} of the targets equal the next input, so they are shifted "
            f"for certain; at most {number(self.most_shift)} such position in a row tells a shift "
            f"from a lost mask. {part.certainty('float32 rounding of a share')}",
        )


def _kept_mask(run: RunView, mask: str, rows: Rows) -> Flags:
    """Rows at which no padding of the input counts: a lost mask is the business of another rule."""
    if not run.has(f"{mask}/padding_credit"):
        return np.ones(len(rows), bool)
    credit = run.rows(f"{mask}/padding_credit")
    lost = credit.steps[credit[f"{mask}/padding_credit"] > SHARE_TOLERANCE]
    return ~np.isin(rows.steps, lost)


def _example(*, padding: float) -> RunHistory:
    return history(
        mask__target_padding=[padding] * 5,
        mask__target_padding_most=[float(padding > 0)] * 5,
        mask__target_next_input=[1.0] * 5,
    )
