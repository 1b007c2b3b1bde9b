"""The training loss of each epoch, as rules about its course read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainsanity.rules.comparison import real, text, whole
from trainsanity.rules.history import RunView


@dataclass(frozen=True)
class EpochLoss:
    """The loss shown at the end of an epoch; `number` counts epochs from 1."""

    number: int
    step: int
    loss: float
    is_new: bool


def epoch_losses(run: RunView) -> list[EpochLoss]:
    """Epochs with a finite loss, oldest first; raises NotTestable where there is no epoch audit."""
    new = {id(audit) for audit in run.new_audits("epoch")}
    found = []
    for audit in run.audits("epoch"):
        reported = audit.facts.get("reported")
        loss = real(reported, "loss") if isinstance(reported, Mapping) else None
        if loss is None or not math.isfinite(loss) or text(audit.facts, "not_testable"):
            continue
        epoch = (whole(audit.facts, "epoch") or 0) + 1
        found.append(EpochLoss(epoch, audit.step, loss, id(audit) in new))
    return found
