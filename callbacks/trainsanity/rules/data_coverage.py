"""An epoch does not see all rows of the data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import measured, merged, number, share, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class DataCoverage(Rule):
    """An epoch saw fewer different rows than the data set has.

    Compares: rows that entered the steps of an epoch with the rows of the data that was declared;
    and, where data comes from a data set or generator, the fingerprints of the batches of an epoch
    with each other.

    Why: an index that is off, a generator that repeats its first batch or drops its last leaves
    data unused. Nothing fails, the model just knows less.

    Try: count rows in `__getitem__` and `__len__` of the data set; look at the last batch.

    Source: counts are exact, so only what cannot fill a batch may be missing (`drop_remainder`).
    Sampling with replacement leaves 1/e = 37 % of the rows out of an epoch and repeats others, so
    the rule speaks only where rows were given as arrays or declared with Expect(data_rows=...), and
    not where `steps_per_epoch` was given. That all batches of an epoch are one and the same is
    advice where no rows were declared: to learn one batch by heart is a usual first test.
    """

    id = "data-coverage"
    severity = Severity.WARNING
    needs = ("audit:data_epoch", "audit:fit")

    least_batches: int = 10  # in an epoch, before it is told that they are all the same

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(rows=900)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(rows=990)

    def check(self, run: RunView) -> Iterable[Finding]:
        audits = measured(run, "data_epoch")
        fit, declared = run.audit("fit").facts, run.expects("data_rows")
        same = [
            _repeated(audit, declared) for audit in audits if self._is_one_batch(run, fit, audit)
        ]
        if same:
            return merged(same)
        if fit.get("steps_per_epoch"):
            raise NotTestable("steps_per_epoch was given, so an epoch is not the whole data set")
        known = declared or any(whole(a.facts, "dataset_rows") for a in run.audits("data_epoch"))
        if not known:
            raise NotTestable("the rows of the data set are not known: Expect(data_rows=...)")
        return merged(found for audit in audits for found in _of(audit, declared))

    def _is_one_batch(self, run: RunView, fit: Mapping[str, Any], audit: Audit) -> bool:
        batches = whole(audit.facts, "batches") or 0
        if fit.get("data") == "arrays" or batches < self.least_batches:
            return False
        # A fingerprint is made of some elements of a row, which sparse rows may have in common.
        means = [q for q in run.quantities("mean", "std") if q.split(":")[0] == "inputs"]
        totals = [run.totals(f"{quantity}/mean") for quantity in means]
        return whole(audit.facts, "distinct_batches") == 1 and all(t.min == t.max for t in totals)


def _repeated(audit: Audit, declared: int | None) -> Finding:
    batches, rows = (whole(audit.facts, key) or 0 for key in ("batches", "rows"))
    epoch = (whole(audit.facts, "epoch") or 0) + 1
    return Finding(
        subject="data",
        title="All batches of an epoch hold the same rows",
        message=f"Epoch {epoch} had {number(batches)} batches, {number(rows)} rows in all. Only 1 "
        f"of the batches is new: its {number(rows / batches)} rows came again and again."
        + (f" The data was declared to have {number(declared)} rows." if declared else ""),
        witnesses=(
            Witness("batches of the epoch", batches, "batches"),
            Witness("different batches among them", 1, "batches"),
        ),
        suggestion="Use the index in `__getitem__`, and move on in a generator before you yield "
        "again. If one batch is to be learnt by heart, nothing is wrong.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="Batches are told apart by a sum over elements of all their rows, and by the "
        "mean of the inputs.",
        severity=None if (declared or 0) > rows / batches else Severity.ADVICE,
    )


def _of(audit: Audit, declared: int | None) -> Iterator[Finding]:
    facts = audit.facts
    rows, batches = whole(facts, "rows"), whole(facts, "batches")
    expected = declared or whole(facts, "dataset_rows")
    if rows is None or not batches or not expected or facts.get("stopped") is True:
        return
    a_batch = -(-rows // batches)
    if expected - rows >= a_batch:
        yield _missing(audit, rows, expected, a_batch)


def _missing(audit: Audit, seen: int, expected: int, a_batch: int) -> Finding:
    epoch = (whole(audit.facts, "epoch") or 0) + 1
    return Finding(
        subject="data",
        title=f"An epoch leaves out {share((expected - seen) / expected)} of the data",
        message=f"The data has {number(expected)} rows; epoch {epoch} saw {number(seen)}. "
        f"{number(expected - seen)} never reached the model in that epoch.",
        witnesses=(
            Witness("rows seen", seen, "rows"),
            Witness("rows of the data set", expected, "rows"),
        ),
        suggestion="Check `__len__` and `__getitem__` of the data set, or the generator: which "
        "rows it repeats, and whether it ends early.",
        first_step=audit.step,
        last_step=audit.step,
        certainty=f"Rows are counted; {number(a_batch - 1)} may be missing where the last batch is "
        "dropped.",
    )


def _example(*, rows: int) -> RunHistory:
    facts = {"epoch": 0, "batches": 32, "rows": rows, "dataset_rows": 1000}
    return history(
        audits=[("fit", 0, {"steps_per_epoch": None}), ("data_epoch", 32, facts)],
    )
