"""Shuffling was declared, and every epoch sees the batches in the same order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainsanity.rules.comparison import measured, merged, number, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class DataOrderRepeat(Rule):
    """The data comes in the same order in every epoch although shuffling was declared.

    Compares: the fingerprint of an epoch's batches in their order with that of the epoch before,
    against the declared shuffle.

    Why: the same batches in the same order make the steps of every epoch alike; a model can learn
    the order, and runs with other seeds are less different than they look.

    Try: `shuffle(..., reshuffle_each_iteration=True)`, shuffle before `cache` and `batch`, or
    `on_epoch_end` in a PyDataset.

    Where nothing but the `shuffle` of `fit` (True by default) declares it, this is advice: with
    TensorFlow, Keras shuffles arrays by an operation that, once `keras.utils.set_random_seed` was
    called, draws the same order in every epoch.

    Source: TensorFlow issue 29558. With b different batches an honest shuffle repeats their order
    once in b! epochs; fewer than ten batches say too little (10! = 3.6 million).
    """

    id = "data-order-repeat"
    severity = Severity.WARNING
    needs = ("audit:data_epoch",)

    least_batches: int = 10  # different batches in an epoch

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(orders=("a1", "a1"))

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(orders=("a1", "b2"))

    def check(self, run: RunView) -> Iterable[Finding]:
        if not _is_shuffled(run):
            raise NotTestable("no shuffling was declared: pass Expect(shuffle=True) if it is meant")
        new = {id(audit) for audit in measured(run, "data_epoch")}
        audits = [a for a in run.audits("data_epoch") if text(a.facts, "order")]
        if audits and all(self._batches(a) < self.least_batches for a in audits):
            raise NotTestable(
                f"an epoch has fewer than {self.least_batches} different batches, whose order may "
                "repeat by chance"
            )
        return merged(
            found
            for before, after in itertools.pairwise(audits)
            if id(after) in new
            for found in self._of(run, before, after)
        )

    def _of(self, run: RunView, before: Audit, after: Audit) -> Iterator[Finding]:
        order, batches = text(before.facts, "order"), self._batches(after)
        follows = (whole(after.facts, "epoch") or 0) - (whole(before.facts, "epoch") or 0) == 1
        if not follows or order != text(after.facts, "order") or batches < self.least_batches:
            return
        epoch = whole(after.facts, "epoch") or 0
        yield Finding(
            subject="data",
            title="Epochs see the data in the same order",
            message=f"Shuffling was declared, but epoch {epoch + 1} saw its {number(batches)} "
            f"different batches in exactly the order of epoch {epoch}.{_framework(run)}",
            witnesses=(
                Witness(f"order of epoch {epoch}", order or "", "digest"),
                Witness(f"order of epoch {epoch + 1}", text(after.facts, "order") or "", "digest"),
                Witness("different batches", batches, "batches"),
            ),
            suggestion="With tf.data, shuffle with reshuffle_each_iteration=True, before batch and "
            "after cache. With a PyDataset, shuffle in on_epoch_end. If the order is meant, do not "
            "declare shuffle.",
            first_step=before.step + 1,
            last_step=after.step,
            severity=None if run.expects("shuffle") is True else Severity.ADVICE,
            certainty=f"Fingerprints are equal; chance repeats an order of {number(batches)} "
            f"batches once in {_factorial(batches)}.",
        )

    def _batches(self, audit: Audit) -> int:
        return whole(audit.facts, "distinct_batches") or 0


def _is_shuffled(run: RunView) -> bool:
    declared = run.expects("shuffle")
    if declared is None and run.has_audit("fit"):
        declared = run.audit("fit").facts.get("shuffle")
    return declared is True or declared == "batch"


def _framework(run: RunView) -> str:
    """Who repeats the order of arrays: not the user."""
    if run.facts.backend != "tensorflow" or not run.has_audit("fit"):
        return ""
    if run.audit("fit").facts.get("data") != "arrays":
        return ""
    return (
        " Keras on TensorFlow does this to arrays after keras.utils.set_random_seed: its shuffling "
        "operation is seeded anew at every epoch."
    )


def _factorial(n: int) -> str:
    return f"{math.factorial(n):,}" if n <= 12 else f"10^{int(math.lgamma(n + 1) / math.log(10))}"


def _example(*, orders: tuple[str, str]) -> RunHistory:
    epochs = [
        (
            "data_epoch",
            32 * (i + 1),
            {"epoch": i, "batches": 32, "distinct_batches": 32, "order": order, "content": "c"},
        )
        for i, order in enumerate(orders)
    ]
    return history(audits=[("fit", 0, {"shuffle": True}), *epochs])
