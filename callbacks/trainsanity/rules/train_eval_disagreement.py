"""The same rows give other numbers in training mode than in inference mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    maps,
    mean_tolerance,
    measured,
    merged,
    number,
    real,
    text,
    two_numbers,
    whole,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class TrainEvalDisagreement(Rule):
    """The loss over the same rows and weights differs between training and inference mode.

    Compares: the compiled loss over captured training rows in training mode with the same in
    inference mode, with the weights as they are at the end of the epoch.

    Why: what is trained is not what will be used. Without dropout, noise or batch norm the two must
    be equal. With them inference should be as good or better; statistics that do not follow, or a
    layer that mixes up its modes, make it worse and stay unseen until the model is used.

    Try: lower the momentum of batch norm, train longer before you judge, or look for a layer that
    reads `training` the wrong way round.

    Source: Ioffe and Szegedy 2015 on moving statistics, which forget their start after a few times
    1/(1 − momentum) updates. Equality is judged by float32 rounding; the gap of layers that may
    differ by the spread of repeated training passes.
    """

    id = "train-eval-disagreement"
    severity = Severity.WARNING
    needs = ("audit:train_eval",)

    rounding_factor: float = 64.0  # other kernels in the two modes; in units of a batch's rounding
    flips: float = 3.0  # rows that may sit on a threshold and fall to the other side
    lasting: int = 3  # epochs in a row, where modes may differ
    spreads: float = 6.0  # standard deviations of the repeated training passes
    material_score: float = 0.2  # of a score in 0..1; our own judgement
    material_error: float = 1.0  # of the training error: twice as large; our own judgement
    forgotten: float = 5.0  # time constants of batch norm's statistics; e^-5 of the start is left

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(inference=0.55)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(inference=0.91)

    def check(self, run: RunView) -> Iterable[Finding]:
        new = {id(audit) for audit in measured(run, "train_eval")}
        audits = [a for a in run.audits("train_eval") if not text(a.facts, "not_testable")]
        return merged(
            found
            for i, audit in enumerate(audits)
            if id(audit) in new
            for key in maps(audit.facts, "keys")
            for found in self._of(audits[: i + 1], audit, key)
        )

    def _of(self, audits: list[Audit], audit: Audit, facts: Mapping[str, Any]) -> Iterator[Finding]:
        training, inference = real(facts, "training"), real(facts, "inference")
        key = text(facts, "key")
        if key is None or training is None or inference is None:
            return
        rows = whole(audit.facts, "rows") or 1
        rounding = self.rounding_factor * float(mean_tolerance(training, inference))
        tolerance = rounding + self.flips / rows
        gap = abs(training - inference)
        if not audit.facts.get("mode_layers"):
            if gap > tolerance:
                yield _without_a_reason(audit, key, training, inference, tolerance)
            return
        last = audits[-self.lasting :]
        if len(last) == self.lasting and all(self._is_worse(a, key) for a in last):
            yield _worse(audit, last[0], key, training, inference)

    def _is_worse(self, audit: Audit, key: str) -> bool:
        """Whether inference is much worse, with statistics that had time to settle."""
        facts = next((k for k in maps(audit.facts, "keys") if text(k, "key") == key), {})
        training, inference = real(facts, "training"), real(facts, "inference")
        higher = facts.get("higher_is_better")
        if training is None or inference is None or not isinstance(higher, bool):
            return False
        momentum = real(audit.facts, "momentum") or 0.0
        if (whole(audit.facts, "updates") or 0) * (1 - momentum) < self.forgotten:
            return False
        loss = training - inference if higher else inference - training
        matters = self.material_score if higher else self.material_error * abs(training)
        return loss > matters + self.spreads * (real(facts, "spread") or 0.0)


def _without_a_reason(
    audit: Audit, key: str, training: float, inference: float, tolerance: float
) -> Finding:
    left, right = two_numbers(training, inference)
    return Finding(
        subject=key,
        title=f"{key} differs between training and inference mode",
        message=f"Over the same {number(whole(audit.facts, 'rows') or 0)} rows and with the same "
        f"weights {key} is {left} in training mode and {right} in inference mode, though no layer "
        "is known to behave differently in the two.",
        witnesses=(
            Witness(f"{key} in training mode", training),
            Witness(f"{key} in inference mode", inference),
        ),
        suggestion="Look for code of your own that reads `training`, or that draws random numbers "
        "or changes state in call().",
        first_step=audit.step,
        last_step=audit.step,
        certainty=f"The gap is {number(abs(training - inference))}; {number(tolerance, 2)} is "
        "allowed for float32 rounding and three rows on a threshold.",
    )


def _worse(audit: Audit, first: Audit, key: str, training: float, inference: float) -> Finding:
    left, right = two_numbers(training, inference)
    layers = ", ".join(f"`{name}`" for name in list(audit.facts.get("mode_layers") or [])[:3])
    return Finding(
        subject=key,
        title=f"{key} is much worse in inference mode on the same rows",
        message=f"Over the same rows and with the same weights {key} is {left} in training mode "
        f"and {right} in inference mode, since the epoch that ended at step {first.step:,}. "
        f"Layers that differ between the modes: {layers}.",
        witnesses=(
            Witness(f"{key} in training mode", training),
            Witness(f"{key} in inference mode", inference),
        ),
        suggestion="Check batch norm first: a smaller momentum (0.9), larger batches, and training "
        "and inference data that are scaled alike.",
        first_step=first.step,
        last_step=audit.step,
        severity=Severity.ADVICE,
        certainty="The gap exceeds what matters and six times the spread of repeated training "
        "passes, after batch norm's statistics had time to settle.",
    )


def _example(*, inference: float) -> RunHistory:
    keys = [{"key": "accuracy", "training": 0.91, "spread": 0.0, "inference": inference}]
    facts = {"rows": 256, "passes": 3, "mode_layers": [], "updates": 100, "keys": keys}
    return history(audits=[("train_eval", 100, facts)])
