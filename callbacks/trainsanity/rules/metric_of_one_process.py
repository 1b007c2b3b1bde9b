"""The accuracy shown is that of one of several processes, and the others see something else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import number, real, two_numbers, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.shown_metrics import shown_metrics


@dataclass(frozen=True)
class Moment:
    """One metric at the end of an epoch or of its validation: as shown, and over the rows of all
    processes.
    """

    step: int
    shown: float
    in_all: float
    rows: float  # of the process that shows it

    @property
    def gap(self) -> float:
        return abs(self.shown - self.in_all)

    def random_gap(self, deviations: float) -> float:
        """The most by which a mean of random rows differs, but for a chance of
        exp(-deviations² / 2): about as many standard deviations, and more where a few misses in few
        rows make a difference (Bernstein's inequality).
        """
        variance = self.in_all * (1 - self.in_all) / self.rows
        few = deviations**2 / (6 * self.rows)
        return few + math.sqrt(few**2 + deviations**2 * variance)


@dataclass(frozen=True)
class MetricOfOneProcess(Rule):
    """The accuracy that Keras shows is that of one process, and not what all of them reach.

    Compares: the accuracy shown at the end of an epoch, and that of its validation, which between
    processes of torch.distributed nobody averages, with the accuracy over the rows of all
    processes.

    Why: who stops, keeps or compares models by this number, as EarlyStopping and ModelCheckpoint do
    by `val_accuracy`, judges them by one part of the data; and processes whose parts differ so much
    do not get a random share each. Where each process stops by a number of its own, they stop after
    different epochs, and those that go on wait for the others.

    Try: give every process a random share (a DistributedSampler that shuffles, `set_epoch` in each
    epoch), and average what is shown (`torch.distributed.all_reduce`) before it decides anything.

    Source: PyTorch's documentation of DistributedSampler. A mean of n random values between 0 and 1
    has a standard deviation of at most sqrt(p (1 - p) / n), and how seldom it differs by several of
    them, also for few rows and shares near 0 or 1, is Bernstein's inequality (S. Boucheron, G.
    Lugosi and P. Massart, *Concentration Inequalities*, 2013, section 2.8).
    """

    id = "metric-of-one-process"
    severity = Severity.ADVICE
    needs = ("accuracy/recomputed_in_all", "audit:epoch", "audit:evaluate")
    heuristic = True

    deviations: float = 6.0  # standard deviations of a random share
    material: float = 0.02  # accuracy that matters at all; our own judgement
    lasting: int = 3  # epochs or validations in a row, all in one direction

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(shown=0.9)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(shown=0.73)  # as far apart as shares of 1,000 random rows are at times

    def check(self, run: RunView) -> Iterable[Finding]:
        known = [
            (f"{before}{key}", moments, when)
            for key in _accuracies(run)
            for before, moments, when in (
                ("", _epochs, "epoch that ended at"),
                ("val_", _validations, "validation after"),
            )
            if run.has(f"{before}{key}/recomputed_in_all")
        ]
        if not known:
            raise NotTestable("no accuracy is known of several processes together")
        for key, moments, when in known:
            yield from self._of(key, list(moments(run, key)), when)

    def _of(self, key: str, moments: list[Moment], when: str) -> Iterator[Finding]:
        found: list[Moment] = []
        for end in range(self.lasting, len(moments) + 1):
            last = moments[end - self.lasting : end]
            if all(map(self._is_off, last)) and len({m.shown > m.in_all for m in last}) == 1:
                found.extend(m for m in last if m not in found)
        if not found:
            return
        now = found[-1]
        shown, in_all = two_numbers(now.shown, now.in_all)
        yield Finding(
            subject=key,
            title=f"{key} is that of one process, not of all",
            message=f"Keras reports {key} {shown} in the process that shows it; over the rows of "
            f"all processes it is {in_all} ({when} step {now.step:,}).",
            witnesses=(
                Witness(f"{key}/reported", now.shown),
                Witness(f"{key}/recomputed_in_all", now.in_all),
            ),
            suggestion="Give every process a random share of the rows, and average the metric over "
            "the processes before it decides anything.",
            first_step=found[0].step,
            last_step=now.step,
            count=len(found),
            certainty=f"More than {number(self.deviations)} standard deviations of "
            f"{number(now.rows)} random rows, {self.lasting} times in a row or more.",
        )

    def _is_off(self, moment: Moment) -> bool:
        return moment.gap > max(self.material, moment.random_gap(self.deviations))


def _accuracies(run: RunView) -> list[str]:
    """Keys of unweighted means of hits by a routine of ours."""
    return [
        key
        for key, metric in shown_metrics(run).items()
        if metric.recomputed_by == "reference"
        and not metric.weighted
        and metric.kind.endswith("Accuracy")
    ]


def _epochs(run: RunView, key: str) -> Iterator[Moment]:
    """Ends of epochs at which the metric is known both ways, oldest first."""
    rows = run.rows(f"{key}/recomputed_in_all")
    known = dict(zip(rows.steps.tolist(), rows[f"{key}/recomputed_in_all"].tolist(), strict=True))
    for audit in run.audits("epoch") if run.has_audit("epoch") else []:
        reported = audit.facts.get("reported")
        shown = real(reported, key) if isinstance(reported, Mapping) else None
        step = whole(audit.facts, "last_step")
        in_all = known.get(step) if step is not None else None
        if shown is not None and in_all is not None and step is not None:
            yield from _moment(step, shown, in_all, audit.facts)


def _validations(run: RunView, key: str) -> Iterator[Moment]:
    """Passes of which the metric is known both ways, oldest first."""
    names = f"{key}/reported", f"{key}/recomputed_in_all"
    if not (run.has(names[0]) and run.has_audit("evaluate")):
        return
    # Of several passes after one step the sums of all processes are those of the first.
    passes = {audit.step: audit.facts for audit in reversed(run.audits("evaluate"))}
    rows = run.rows(*names)
    shown, in_all = (rows[name].tolist() for name in names)
    for i, step in enumerate(rows.steps.tolist()):
        yield from _moment(step, shown[i], in_all[i], passes.get(step, {}))


def _moment(
    step: int, shown: float, in_all: float, measured: Mapping[str, Any]
) -> Iterator[Moment]:
    """None where it is no share, or nobody knows of how many rows."""
    batches = whole(measured, "batches") or 0
    seen = batches * (real(measured, "batch_size_mean") or 0.0)
    if seen >= 1 and 0 <= shown <= 1 and 0 <= in_all <= 1:
        yield Moment(step, shown, in_all, seen)


def _example(*, shown: float) -> RunHistory:
    metric = {
        "key": "accuracy",
        "kind": "SparseCategoricalAccuracy",
        "recomputed_by": "reference",
        "weighted": False,
    }
    epochs = [
        {
            "epoch": i,
            "last_step": i + 1,
            "batches": 1,
            "batch_size_mean": 1000.0,
            "reported": {"accuracy": shown},
        }
        for i in range(4)
    ]
    return history(
        accuracy__recomputed_in_all=[0.7] * 4,
        audits=[
            ("columns", 1, {"metrics": [metric]}),
            *(("epoch", i + 1, facts) for i, facts in enumerate(epochs)),
        ],
    )
