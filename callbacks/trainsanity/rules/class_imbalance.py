"""One class dwarfs the others, and the model does no better than to answer it always."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, number, real, share, text
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class ClassImbalance(Rule):
    """The accuracy is what always answering the most common class gives.

    Compares: the accuracy shown with the share of the most common class in the labels.

    Why: with 95 % of one class, 95 % accuracy is nothing learnt.

    Try: class_weight, resampling, and a metric that sees the rare classes (AUC, F1, recall).

    Source: ClassImbalance of Amazon SageMaker Debugger (ratio 10). That the accuracy is no better
    than the constant answer is the second witness; without it an imbalance is nobody's business.
    """

    id = "class-imbalance"
    severity = Severity.ADVICE
    needs = ("audit:label_counts",)
    heuristic = True

    ratio: float = 10.0  # rows of the most common class for one of the rarest
    gain: float = 0.01  # accuracy above the constant answer
    lasting: int = 3  # epochs in a row

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(accuracy=0.951)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(accuracy=0.99)

    def check(self, run: RunView) -> Iterable[Finding]:
        new = {id(audit) for audit in measured(run, "label_counts")}
        audits = run.audits("label_counts")
        if not any(text(o, "accuracy") for a in audits for o in maps(a.facts, "outputs")):
            raise NotTestable("no accuracy is shown that could be compared with the class shares")
        return merged(
            found
            for i, audit in enumerate(audits)
            if id(audit) in new and i + 1 >= self.lasting
            for output in maps(audit.facts, "outputs")
            for found in self._of(audits[i + 1 - self.lasting : i + 1], output)
        )

    def _of(self, audits: list[Audit], output: Mapping[str, Any]) -> Iterator[Finding]:
        counts = _counts(output)
        key = text(output, "accuracy")
        if key is None or output.get("weighted") is True or not counts:
            return
        most, least = max(counts.values()), min(counts.values())
        if most < self.ratio * least:
            return
        constant = most / sum(counts.values())
        shown = [_accuracy(audit, key) for audit in audits]
        now = shown[-1]
        if now is None or any(value is None or value > constant + self.gain for value in shown):
            return
        common = max(counts, key=lambda name: counts[name])
        yield Finding(
            subject=key,
            title="Accuracy no better than the most common class",
            message=f"Keras reports {key} {number(now)}. Class {common} makes up "
            f"{share(constant)} of the labels; answering it always gives {number(constant)}.",
            witnesses=(
                Witness(f"{key}/reported", now),
                Witness(f"share of class {common}", constant),
                Witness("rows of the rarest class", least, "rows"),
            ),
            suggestion="Give rare classes weight (class_weight=) and watch a metric that sees "
            "them, such as recall, F1 or AUC.",
            first_step=audits[0].step,
            last_step=audits[-1].step,
            certainty=f"At most {share(self.gain)} above the constant answer in {self.lasting} "
            "epochs in a row.",
        )


def _counts(output: Mapping[str, Any]) -> dict[str, int]:
    counts = output.get("counts")
    if not isinstance(counts, Mapping):
        return {}
    return {str(k): v for k, v in counts.items() if isinstance(v, int) and v > 0}


def _accuracy(audit: Audit, key: str) -> float | None:
    """The accuracy shown for this epoch; None where it was not, or is not finite."""
    for output in maps(audit.facts, "outputs"):
        if text(output, "accuracy") == key:
            shown = real(output, "shown")
            return shown if shown is not None and math.isfinite(shown) else None
    return None


def _example(*, accuracy: float) -> RunHistory:
    output = {"name": "", "counts": {"0": 950, "1": 50}, "weighted": False}
    output |= {"accuracy": "accuracy", "shown": accuracy}
    return history(
        audits=[("label_counts", i + 1, {"epoch": i, "outputs": [output]}) for i in range(3)],
    )
