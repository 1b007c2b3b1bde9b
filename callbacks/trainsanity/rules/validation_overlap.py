"""Validation rows that the model has been trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import measured, merged, number, share, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class ValidationOverlap(Rule):
    """Rows of the validation data are among the training rows.

    Compares: the share of validation rows that occur among the training rows, by hash, with the
    share of training rows that occur more than once among themselves.

    Why: what the model has seen is no test of it. Validation then looks as good as training and
    hides overfitting.

    Try: split before you augment, oversample or cut windows; split by group (patient, document).

    Source: rows drawn from one population meet a twin in the training set as often as training rows
    do, so their own duplicates tell what is honest; the margin is the binomial standard error.
    """

    id = "validation-overlap"
    severity = Severity.WARNING
    needs = ("audit:validation_overlap",)

    errors: float = 5.0  # binomial standard errors; chance exceeds them once in 3.5 million
    margin: float = 0.01  # share of validation rows; our own judgement: 1 % of leaked rows
    least_rows: int = 20  # validation rows

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(shared=120)

    @staticmethod
    def quiet_on() -> RunHistory:
        # The data has duplicates of its own: 4 % of the training rows have a twin.
        return _example(shared=11)

    def check(self, run: RunView) -> Iterable[Finding]:
        audits = measured(run, "validation_overlap")
        every = run.audits("validation_overlap")
        if all((whole(a.facts, "validation_rows") or 0) < self.least_rows for a in every):
            raise NotTestable(f"there are fewer than {self.least_rows} validation rows")
        return merged(found for audit in audits for found in self._of(audit))

    def _of(self, audit: Audit) -> Iterator[Finding]:
        facts = audit.facts
        rows, shared = whole(facts, "validation_rows"), whole(facts, "shared")
        train, twins = whole(facts, "train_rows"), whole(facts, "train_duplicates")
        if rows is None or shared is None or not train or twins is None or rows < self.least_rows:
            return
        overlap, honest = shared / rows, twins / train
        deviation = math.sqrt(max(honest * (1 - honest), 1 / rows) / rows)
        allowed = honest + self.margin + self.errors * deviation
        if not overlap > allowed:
            return
        yield Finding(
            subject="validation data",
            title=f"{share(overlap)} of the validation rows are training rows",
            message=f"{number(shared)} of {number(rows)} validation rows ({share(overlap)}) occur "
            f"among the training rows, by their {text(facts, 'hashed') or 'hashes'}. Of the "
            f"training rows themselves {share(honest)} occur more than once, so that much could be "
            "honest.",
            witnesses=(
                Witness("validation rows among training rows", overlap),
                Witness("training rows that occur more than once", honest),
                Witness("shared rows", shared, "rows"),
            ),
            suggestion="Split before you augment, oversample or cut windows, and keep rows of one "
            "origin on one side. Until then do not trust the validation numbers.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=f"{share(allowed)} would be allowed: the duplicates of the training data, "
            f"{share(self.margin)} and {number(self.errors)} standard errors of "
            f"{share(deviation)}.",
        )


def _example(*, shared: int) -> RunHistory:
    facts = {
        "validation_rows": 200,
        "shared": shared,
        "train_rows": 1000,
        "train_duplicates": 40,
        "hashed": "inputs and labels",
    }
    return history(audits=[("validation_overlap", 32, facts)])
