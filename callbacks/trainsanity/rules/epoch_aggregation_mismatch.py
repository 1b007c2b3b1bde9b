"""The number of an epoch is not the mean of its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
    mean_tolerance,
    measured,
    merged,
    not_measured,
    number,
    real,
    relative_gap,
    share,
    times_in_words,
    two_numbers,
    whole,
)
from trainsanity.rules.history import KEPT_ROWS, Floats, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.shown_metrics import loss_dtype, shown_metrics


@dataclass(frozen=True)
class _Epoch:
    """The batches of one epoch, values and sizes of shape (batches,), and what was shown."""

    first_step: int
    last_step: int
    values: Floats
    sizes: Floats
    shown: float
    dtype: str  # of the loss and its mean

    @property
    def weighted(self) -> float:
        return float(np.average(self.values, weights=self.sizes))

    @property
    def plain(self) -> float:
        return float(self.values.mean())

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def tolerance(self) -> float:
        largest = float(np.abs(self.values).max())
        batches = len(self.values)
        return float(mean_tolerance(self.shown, largest, batches=batches, dtype=self.dtype))


@dataclass(frozen=True)
class EpochAggregationMismatch(Rule):
    """The number shown for an epoch is not the mean over its samples.

    Compares: the value shown at the end of an epoch with the mean of its batches, weighted by their
    sizes; with their plain mean; and with the last batch alone. For a masked loss also with the
    mean over all positions that count. Losses of single outputs as advice, as Keras 3.15 on
    TensorFlow takes the plain mean of their batches. What the last step told the progress bar,
    with the epoch: where a train_step of your own returns a loss and no metric is updated with it,
    Keras shows 0.

    Why: where a short last batch weighs as a full one, or a batch value stands in the place of an
    epoch's mean, the number depends on how the data is cut, and runs cannot be compared.

    Try: feed `keras.metrics.Mean` with `sample_weight=batch size` in your own train step.

    Source: TensorFlow issues 38596 and 36400. A masked loss of Keras 3 is a mean of batch means by
    design (keras/src/losses/loss.py), so that finding is advice. The tolerance is the rounding of a
    float32 mean over the batches.
    """

    id = "epoch-aggregation-mismatch"
    severity = Severity.CRITICAL
    needs = ("*/reported", "loss/differentiated", "batch/size", "audit:epoch")

    material: float = 0.02  # share of the loss by which a mean of masked batch means matters

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(end=2.5)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(end=2.2)

    def check(self, run: RunView) -> Iterable[Finding]:
        batches = {"loss": "loss/differentiated", **_sample_means(run)}
        batches = {k: v for k, v in batches.items() if run.has(f"{k}/reported", v)}
        if not batches or not run.has("batch/size"):
            raise not_measured(run, "loss/reported", "loss/differentiated", "batch/size")
        audits = measured(run, "epoch")
        if all(_length(audit.facts) >= KEPT_ROWS for audit in run.audits("epoch")):
            raise NotTestable(
                f"epochs of {KEPT_ROWS:,} batches or more are not kept batch by batch"
            )
        found: list[Finding] = []
        for facts in (audit.facts for audit in audits):
            for key, signal in batches.items():
                epoch = _epoch(run, key, signal, facts)
                found.extend(() if epoch is None else _compare(key, epoch))
            for key in _parts(run):
                epoch = _epoch(run, key, f"{key}/batch", facts)
                found.extend(() if epoch is None else map(_as_advice, _compare(key, epoch)))
            found.extend(self._masked(run, facts))
            found.extend(_told(run, facts, batches))
        return merged(found)

    def _masked(self, run: RunView, facts: Mapping[str, Any]) -> Iterator[Finding]:
        """A masked loss, averaged over batches instead of over the positions that count."""
        step = whole(facts, "last_step")
        names = "loss/reported", "loss/by_position"
        if step is None or not run.has(*names):
            return
        rows = run.rows(*names)
        at = np.flatnonzero(rows.steps == step)
        if not len(at):
            return
        shown, true = (float(rows[name][at[0]]) for name in names)
        gap = float(relative_gap(shown, true))
        if not gap > self.material:
            return
        left, right = two_numbers(shown, true)
        yield Finding(
            subject="masked loss",
            title="The loss of an epoch depends on how batches are cut",
            message=f"Keras reports loss {left}. Over all positions that count it is {right}. "
            "Keras averages a masked loss inside each batch and then over batches by their rows, "
            "so a position in a batch with much padding weighs more. Another batch size would "
            "show another loss.",
            witnesses=(Witness(names[0], shown), Witness(names[1], true)),
            suggestion="Compare losses of masked models only between runs of one batch size; sort "
            "rows of like length into one batch, or compare a metric, which counts positions.",
            first_step=whole(facts, "first_step") or 0,
            last_step=step,
            severity=Severity.ADVICE,
            certainty=f"The gap is {share(gap)} of the loss; {share(self.material)} are allowed.",
        )


def _told(run: RunView, facts: Mapping[str, Any], batches: Mapping[str, str]) -> Iterator[Finding]:
    """What the last step told the progress bar: the value of its batch, or of the epoch so far."""
    told = {
        key: (epoch, shown)
        for key, signal in batches.items()
        if (epoch := _epoch(run, key, signal, facts)) is not None
        and (shown := _at(run, f"{key}/reported", epoch.last_step)) is not None
    }
    running = [k for k, (e, shown) in told.items() if abs(shown - e.shown) <= e.tolerance]
    for key, (epoch, shown) in told.items():
        apart = abs(shown - epoch.shown) > epoch.tolerance
        of_batch = abs(shown - epoch.last) <= epoch.tolerance
        if epoch.shown == 0.0 and (np.abs(epoch.values) > epoch.tolerance).all():
            if shown == 0.0 or of_batch:
                yield _never_updated(key, epoch, shown)
        elif apart and of_batch:
            yield _of_one_batch(key, epoch, shown, running)


def _never_updated(key: str, epoch: _Epoch, shown: float) -> Finding:
    """Keras shows its own metrics of these names for the epoch, not what the step returned."""
    true = number(epoch.weighted)
    return Finding(
        subject=key,
        title=f"{key} of the epoch is 0, the mean over its samples is {true}",
        message=f"For the epoch that ends at step {epoch.last_step:,} Keras shows {key} 0, in the "
        f"history and to callbacks. The step returned {number(shown)} with the last batch. The "
        f"mean over the samples of the epoch is {true}. For an epoch Keras asks its own metric of "
        "this name, which your train_step does not update: checkpoints, early stopping and "
        "learning rate schedules that watch it see 0.",
        witnesses=(
            Witness(f"{key} of the epoch", epoch.shown),
            Witness("mean over samples", epoch.weighted),
            Witness(f"{key}/reported", shown),
        ),
        suggestion=f"Update the metric that tracks {key} in train_step (self.metrics holds it), or "
        f"return the number under another name than {key}.",
        first_step=epoch.first_step,
        last_step=epoch.last_step,
        # Where the step returns 0 too, nobody is shown two numbers for one thing.
        severity=Severity.WARNING if shown == 0.0 else None,
        certainty=f"{number(epoch.tolerance, 2)} would be {epoch.dtype} rounding over "
        f"{len(epoch.values):,} batches.",
    )


def _of_one_batch(key: str, epoch: _Epoch, shown: float, running: list[str]) -> Finding:
    left, right = two_numbers(shown, epoch.shown)
    beside = f", beside {', '.join(running)}, which is of the epoch so far" if running else ""
    return Finding(
        subject=key,
        title=f"{key} in the progress bar is of one batch, for the epoch it is {right}",
        message=f"With the last batch of the epoch that ends at step {epoch.last_step:,}, the step "
        f"returned {key} {left} to the progress bar and to callbacks{beside}. That is the value "
        f"of this batch alone; for the epoch so far it is {right}.",
        witnesses=(
            Witness(f"{key}/reported", shown),
            Witness("for the epoch", epoch.shown),
            Witness("this batch alone", epoch.last),
        ),
        suggestion=f"Return the result() of the metric that tracks {key} from train_step.",
        first_step=epoch.last_step,
        last_step=epoch.last_step,
        # Where all that is shown is of one batch, somebody may want it so.
        severity=Severity.WARNING if running else Severity.ADVICE,
        certainty=f"{number(epoch.tolerance, 2)} would be {epoch.dtype} rounding over "
        f"{len(epoch.values):,} batches.",
    )


def _at(run: RunView, signal: str, step: int) -> float | None:
    if not run.has(signal):
        return None
    rows = run.rows(signal)
    at = np.flatnonzero(rows.steps == step)
    return float(rows[signal][at[0]]) if len(at) else None


def _compare(key: str, epoch: _Epoch) -> Iterator[Finding]:
    """Speaks only where another way to aggregate explains the number shown."""
    if not abs(epoch.shown - epoch.weighted) > epoch.tolerance:
        return
    shown, true = two_numbers(epoch.shown, epoch.weighted)
    severity = None
    if abs(epoch.shown - epoch.plain) <= epoch.tolerance:
        what, other = "the plain mean of its batches", epoch.plain
        cause = "a batch with fewer samples weighs as much as a full one"
    elif abs(epoch.shown - epoch.last) <= epoch.tolerance:
        what, other = "the last batch alone", epoch.last
        cause = "no mean over the epoch is taken"
        severity = Severity.WARNING  # some mean to watch the last batch
    else:
        return
    gap = abs(epoch.shown - epoch.weighted)
    yield Finding(
        subject=key,
        title=f"{key} of the epoch is {what}",
        message=f"Keras reports {key} {shown} for the epoch that ends at step {epoch.last_step:,}. "
        f"The mean over its samples is {true}. The number shown is {what}: {cause}.",
        witnesses=(
            Witness(f"{key}/reported", epoch.shown),
            Witness("mean over samples", epoch.weighted),
            Witness(what, other),
        ),
        suggestion="In your own train step, use keras.metrics.Mean and give it the number of "
        "samples: tracker.update_state(loss, sample_weight=batch_size), and return its result().",
        first_step=epoch.first_step,
        last_step=epoch.last_step,
        severity=severity,
        certainty=f"The gap is {number(gap)}, {times_in_words(gap / epoch.tolerance)} the "
        f"{number(epoch.tolerance, 2)} allowed for {epoch.dtype} rounding over "
        f"{len(epoch.values):,} batches.",
    )


def _epoch(run: RunView, key: str, signal: str, facts: Mapping[str, Any]) -> _Epoch | None:
    """The batches of an epoch that ended, and what was shown for it; None where they are not all at
    hand, or not finite.
    """
    first, last = whole(facts, "first_step"), whole(facts, "last_step")
    if first is None or last is None or not 2 <= _length(facts) <= KEPT_ROWS:
        return None
    batches, reported = run.rows(signal, "batch/size"), run.rows(f"{key}/reported")
    inside = (batches.steps >= first) & (batches.steps <= last)
    at = np.flatnonzero(reported.steps == last)
    if inside.sum() != last - first + 1 or not len(at):
        return None
    values, sizes = batches[signal][inside], batches["batch/size"][inside]
    logs = facts.get("reported")
    in_logs = real(logs, key) if isinstance(logs, Mapping) else None
    shown = float(reported[f"{key}/reported"][at[0]]) if in_logs is None else in_logs
    if not (np.isfinite(values).all() and np.isfinite(shown) and (sizes > 0).all()):
        return None
    return _Epoch(first, last, values, sizes, shown, loss_dtype(run))


def _length(facts: Mapping[str, Any]) -> int:
    first, last = whole(facts, "first_step"), whole(facts, "last_step")
    return 0 if first is None or last is None else last - first + 1


def _parts(run: RunView) -> list[str]:
    """Keys under which Keras shows the losses of several outputs."""
    found = {name.removesuffix("/batch") for name in run.names("*_loss/batch")}
    own = {k for k in found - set(shown_metrics(run)) if not k.startswith("val_")}
    return sorted(k for k in own if run.has(f"{k}/reported"))


def _as_advice(found: Finding) -> Finding:
    """Keras itself does so in a graph, which does not know how many rows a batch has."""
    return replace(
        found,
        message=f"{found.message} Keras 3.15 does so for parts of the loss where TensorFlow's "
        "graph does not know the rows of a batch; `loss` itself is right.",
        suggestion="Watch `loss`, or a metric of the output; or let every batch have as many rows: "
        "batch(n, drop_remainder=True).",
        severity=Severity.ADVICE,
    )


def _sample_means(run: RunView) -> dict[str, str]:
    """Metrics whose batches weigh by their samples alone: no mask, no weights."""
    if any(run.totals(name).min < 1 for name in run.names("mask*/metric_coverage")):
        return {}
    return {
        key: f"{key}/batch"
        for key, metric in shown_metrics(run).items()
        if not metric.weighted and metric.recomputed_by and metric.mean_of == "samples"
    }


def _example(*, end: float) -> RunHistory:
    # Three batches, the last one short: (2·4 + 2·4 + 3.5·2) / 10 = 2.3, the plain mean is 2.5.
    return history(
        audits=[("epoch", 3, {"epoch": 0, "first_step": 1, "last_step": 3, "batches": 3})],
        loss__reported=[2.0, 2.0, 2.5 if end == 2.5 else 2.3],
        loss__differentiated=[2.0, 2.0, 3.5],
        batch__size=[4.0, 4.0, 2.0],
    )
