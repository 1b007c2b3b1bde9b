"""An epoch does not see all rows of the data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import measured, merged, number, share, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class DataCoverage(Rule):
    """An epoch saw fewer different rows than the data set has.

    Compares: rows and different rows that entered the steps of an epoch with the rows, and the
    different rows, of the data that was declared.

    Why: an index that is off, a generator that repeats its first batch or drops its last leaves
    data unused. Nothing fails, the model just knows less.

    Try: count rows in `__getitem__` and `__len__` of the data set; look at the last batch.

    Source: counts are exact, so only what cannot fill a batch may be missing (`drop_remainder`).
    Sampling with replacement leaves 1/e = 37 % of the rows out of an epoch and repeats others, so
    the rule speaks only where rows were given as arrays or declared with Expect(data_rows=...), and
    not where `steps_per_epoch` was given.
    """

    id = "data-coverage"
    severity = Severity.WARNING
    needs = ("audit:data_epoch", "audit:fit")

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(distinct=900)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(distinct=990)

    def check(self, run: RunView) -> Iterable[Finding]:
        fit = run.audit("fit").facts
        if fit.get("steps_per_epoch"):
            raise NotTestable("steps_per_epoch was given, so an epoch is not the whole data set")
        audits = measured(run, "data_epoch")
        declared = run.expects("data_rows")
        known = declared or any(whole(a.facts, "dataset_rows") for a in run.audits("data_epoch"))
        if not known:
            raise NotTestable("the rows of the data set are not known: Expect(data_rows=...)")
        return merged(found for audit in audits for found in _of(audit, declared))


def _of(audit: Audit, declared: int | None) -> Iterator[Finding]:
    facts = audit.facts
    rows, batches = whole(facts, "rows"), whole(facts, "batches")
    expected = declared or whole(facts, "dataset_rows")
    if rows is None or not batches or not expected or facts.get("stopped") is True:
        return
    a_batch = -(-rows // batches)
    if expected - rows >= a_batch:
        yield _missing(audit, "rows", rows, expected, "rows seen", a_batch)
        return
    distinct, different = whole(facts, "distinct_rows"), whole(facts, "dataset_distinct")
    if distinct is not None and different is not None and different - distinct >= a_batch:
        yield _missing(audit, "different rows", distinct, different, "different rows seen", a_batch)


def _missing(audit: Audit, what: str, seen: int, expected: int, name: str, a_batch: int) -> Finding:
    epoch = (whole(audit.facts, "epoch") or 0) + 1
    return Finding(
        subject="data",
        title=f"An epoch leaves out {share((expected - seen) / expected)} of the data",
        message=f"The data has {number(expected)} {what}; epoch {epoch} saw {number(seen)}. "
        f"{number(expected - seen)} never reached the model in that epoch.",
        witnesses=(
            Witness(name, seen, "rows"),
            Witness(f"{what} of the data set", expected, "rows"),
        ),
        suggestion="Check `__len__` and `__getitem__` of the data set, or the generator: which "
        "rows it repeats, and whether it ends early.",
        first_step=audit.step,
        last_step=audit.step,
        certainty=f"Rows are counted; {number(a_batch - 1)} may be missing where the last batch is "
        "dropped.",
    )


def _example(*, distinct: int) -> RunHistory:
    facts = {
        "epoch": 0,
        "batches": 32,
        "rows": 1000,
        "distinct_rows": distinct,
        "dataset_rows": 1000,
        "dataset_distinct": 990,
    }
    return history(
        audits=[("fit", 0, {"steps_per_epoch": None}), ("data_epoch", 32, facts)],
    )
