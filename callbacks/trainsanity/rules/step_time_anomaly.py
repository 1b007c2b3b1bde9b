from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainsanity.rules.comparison import not_measured, number, share
from trainsanity.rules.history import Floats, Overview, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness

STEP, WAIT = "time/step", "time/data_wait"


@dataclass(frozen=True)
class StepTimeAnomaly(Rule):
    """Steps take much longer than before, or mostly wait for data.

    Compares: the time of steps in the last quarter of the run with the first quarter; stretches
    of slow steps with the run's median; and the wait for data with the time of the whole step.

    Why: the device is paid for and idle, or something grows that should not.

    Try: prefetch and parallelise the input pipeline; look for lists that grow.

    Source: TensorFlow issues 27780, 45162, 33177, 32420. Times are noisy, so this is only
    advice; the factors are our own judgement.
    """

    id = "step-time-anomaly"
    severity = Severity.ADVICE
    needs = (STEP,)

    steps: int = 400  # at least, so that a quarter has a hundred
    slower: float = 2.0  # times the first quarter, in all of the last quarter
    stretch_slower: float = 5.0  # times the median step
    stretch_steps: int = 20  # in a row
    stretch_seconds: float = 5.0  # lost in the stretch
    wait_share: float = 0.5  # of the step's time, in the median
    wait_seconds: float = 0.005  # median wait below which nobody cares

    @staticmethod
    def fires_on() -> RunHistory:
        """Half a second of 0.6 is spent on waiting."""
        return history(time__step=[0.6] * 500, time__data_wait=[0.5] * 500)

    @staticmethod
    def quiet_on() -> RunHistory:
        """The first step compiles, and every hundredth is slow."""
        times = ([4.0] + [0.1] * 99 + [0.9] + [0.1] * 99) * 3
        return history(time__step=times, time__data_wait=[0.01] * 600)

    def check(self, run: RunView) -> Iterator[Finding]:
        if not run.has(STEP):
            raise not_measured(run, STEP)
        seen = run.totals(STEP).count
        if seen < self.steps:
            raise NotTestable(f"needs {self.steps} timed steps, {seen} have been")
        new = run.rows(STEP).new.steps
        if not len(new):
            return
        overview = run.overview(STEP)
        yield from self._slowed_down(overview, len(new))
        yield from self._slow_stretch(overview, int(new[0]))
        if run.has(WAIT):
            yield from self._waiting(run)

    def _slowed_down(self, overview: Overview, new: int) -> Iterator[Finding]:
        # The fastest step of each bucket: one slow step says nothing, a fast one does.
        fastest = overview.min[np.isfinite(overview.min)]
        quarter = len(fastest) // 4
        if not quarter:
            return
        before, now = float(np.median(fastest[:quarter])), float(np.median(fastest[-quarter:]))
        if now < self.slower * before:
            return
        # Where a device runs behind the host, its queue takes some steps at once, and then waits.
        means, counts = overview.mean[1:], overview.count[1:]  # the first bucket compiles
        if _mean(means[-quarter:], counts[-quarter:]) < self.slower * _mean(
            means[:quarter], counts[:quarter]
        ):
            return
        first = int(overview.first_step[-quarter])
        yield Finding(
            subject="step time",
            title=f"Steps take {number(now / before, 2)} times as long as at the beginning",
            message=(
                f"The fastest steps took {_time(before)} in the first quarter of the run and take "
                f"{_time(now)} since step {first:,}. Something grows with time (a list, a graph, "
                "a cache), or the machine is shared or throttled."
            ),
            witnesses=(
                Witness("first quarter", before, "s"),
                Witness("last quarter", now, "s"),
            ),
            suggestion="Compare with the memory chart; profile one late step.",
            first_step=first,
            last_step=int(overview.last_step[-1]),
            count=new,
            certainty=f"Up to {number(self.slower)} times is allowed, in the median.",
        )

    def _slow_stretch(self, overview: Overview, first_new: int) -> Iterator[Finding]:
        mean, count = overview.mean[1:], overview.count[1:]  # the first bucket compiles
        if not np.isfinite(mean).any():
            return
        usual = float(np.nanmedian(mean))
        slow = mean > self.stretch_slower * usual
        edges = np.flatnonzero(np.diff(np.concatenate([[False], slow, [False]])))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            steps = int(count[begin:end].sum())
            lost = float(((mean - usual) * count)[begin:end].sum())
            if steps < self.stretch_steps or lost < self.stretch_seconds:
                continue
            first, last = int(overview.first_step[begin + 1]), int(overview.last_step[end])
            if last < first_new:
                continue  # told before
            took = float((mean * count)[begin:end].sum() / steps)
            yield Finding(
                subject="slow stretch",
                title=f"{steps:,} steps took {_time(took)} each, usually {_time(usual)}",
                message=(
                    f"From step {first:,} to step {last:,} a step took {_time(took)} in the mean; "
                    f"the median of the run is {_time(usual)}. Together {_time(lost)} were lost. "
                    "The input pipeline may have stalled (refilled a shuffle buffer, a cold "
                    "cache)."
                ),
                witnesses=(
                    Witness("usual step", usual, "s"),
                    Witness("step in the stretch", took, "s"),
                ),
                suggestion="Look at the wait for data in the same stretch.",
                first_step=first,
                last_step=last,
                count=steps,
                certainty=f"Up to {number(self.stretch_slower)} times the median is allowed.",
            )
            return

    def _waiting(self, run: RunView) -> Iterator[Finding]:
        rows = run.rows(STEP, WAIT)
        known = np.isfinite(rows[STEP]) & np.isfinite(rows[WAIT]) & (rows[STEP] > 0)
        if known.sum() < self.steps // 4:
            return
        step, wait = rows[STEP][known], rows[WAIT][known]
        part, typical = float(np.median(wait / step)), float(np.median(wait))
        if part <= self.wait_share or typical < self.wait_seconds:
            return
        yield Finding(
            subject="input pipeline",
            title=f"{share(part)} of each step is waiting for data",
            message=(
                f"In the median a step takes {_time(float(np.median(step)))}, of which "
                f"{_time(typical)} pass until the next batch arrives. The input pipeline is the "
                "bottleneck."
            ),
            witnesses=(
                Witness(STEP, float(np.median(step)), "s"),
                Witness(WAIT, typical, "s"),
            ),
            suggestion=(
                "Add .prefetch(AUTOTUNE) and num_parallel_calls, or workers for a PyDataset."
            ),
            first_step=int(rows.steps[known][0]),
            last_step=int(rows.steps[known][-1]),
            count=max(1, len(rows.new)),
            certainty=f"Up to {self.wait_share:.0%} is allowed, in the median.",
        )


def _mean(means: Floats, counts: NDArray[np.int64]) -> float:
    """Of all steps of some buckets."""
    known = np.isfinite(means)
    return float((means * counts)[known].sum() / max(1, counts[known].sum()))


def _time(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1e3 * seconds)} ms"
