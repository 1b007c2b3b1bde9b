from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import measured, not_measured, number, whole
from trainsanity.rules.history import Floats, RunHistory, RunView, Steps, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit

# signal: what it is
MEMORY = {
    "memory/without_files": "memory of the process",
    "memory/rss": "memory of the process",
    "memory/device": "memory on the device",
}
# signal: (what it counts, where to look if it grows too)
COUNTS = {
    "memory/live_variables": (
        "live Keras variables",
        "Something creates variables again and again, such as a layer or optimizer made inside a "
        "callback or train_step.",
    ),
    "traces/count": (
        "traces of the training step",
        "Each trace keeps its graph; something makes Keras compile the step again and again.",
    ),
}


@dataclass(frozen=True)
class MemoryGrowth(Rule):
    """Memory grows from epoch to epoch and does not stop.

    Compares: the lowest memory level in five equal stretches of the run after its first epochs;
    beside it, the number of live variables and of traces. Where the system tells, pages of files
    are left out: reading a large file fills memory with them, and they are taken back at need.

    Why: the run is killed when memory ends, usually at night; before that it swaps.

    Try: do not keep tensors or arrays in lists of a callback; do not build models, layers or
    functions in the loop.

    Source: TensorFlow issue 32420. The floors are our own judgement: what allocators and caches
    keep is smaller or stops.
    """

    id = "memory-growth"
    severity = Severity.WARNING
    needs = ("memory/*", "audit:epoch")

    warm_up_epochs: int = 2  # caches, shuffle buffers and arenas fill
    epochs: int = 8  # looked at, at least
    stretches: int = 5  # each must lie above the one before
    samples: int = 2  # in each stretch, at least
    floor: float = 64.0  # MiB, from the first stretch to the last
    share: float = 0.05  # of the level of the first stretch
    # Growth into the last stretch, as a share of the mean: what fills up slows down.
    lasting: float = 0.75

    @staticmethod
    def fires_on() -> RunHistory:
        """Ten MiB an epoch, and a new variable with it."""
        return _example([500.0 + 10 * epoch for epoch in range(20)], variables=range(50, 70))

    @staticmethod
    def quiet_on() -> RunHistory:
        """A cache that fills in the first epochs, and garbage that comes and goes."""
        return _example([500.0, 700.0] + [820.0, 800.0, 850.0] * 6, variables=[50] * 20)

    def check(self, run: RunView) -> Iterator[Finding]:
        signals = [name for name in MEMORY if run.has(name)]
        if "memory/without_files" in signals:
            signals.remove("memory/rss")
        if not signals:
            raise not_measured(run, *MEMORY)
        ends = [
            end
            for audit in run.audits("epoch")
            if (end := whole(audit.facts, "last_step") or audit.step)
        ]
        if len(ends) < self.warm_up_epochs + self.epochs:
            raise NotTestable(
                f"needs {self.warm_up_epochs + self.epochs} epochs, {len(ends)} have ended"
            )
        news = measured(run, "epoch")
        for signal in signals if news else ():
            yield from self._check(run, signal, ends[self.warm_up_epochs - 1], news[-1])

    def _check(self, run: RunView, signal: str, after: int, newest: Audit) -> Iterator[Finding]:
        steps, lows = _since(run, signal, after)
        if len(lows) < self.stretches * self.samples:
            return
        levels = np.array([part.min() for part in np.array_split(lows, self.stretches)])
        growth = np.diff(levels)
        total = float(levels[-1] - levels[0])
        lasting = growth.min() > 0 and growth[-1] >= self.lasting * growth.mean()
        if not lasting or total < max(self.floor, self.share * levels[0]):
            return
        second = _also_grows(run, after)
        yield self._finding(signal, steps, levels, newest.step, second)

    def _finding(
        self, signal: str, steps: Steps, levels: Floats, step: int, second: Witness | None
    ) -> Finding:
        total, what = float(levels[-1] - levels[0]), MEMORY[signal]
        cause = (
            COUNTS[second.name][1]
            if second
            else "The number of Keras variables and traces does not grow with it, so it is held "
            "outside of the model: a list of arrays or logs, or the input pipeline."
        )
        return Finding(
            subject=what,
            title=f"The {what} grew by {number(total)} MiB and goes on",
            message=(
                f"From step {steps[0]:,} to step {step:,} the {what} rose from "
                f"{number(float(levels[0]))} to {number(float(levels[-1]))} MiB, higher in each of "
                f"{self.stretches} stretches than in the one before. {cause}"
            ),
            witnesses=(
                Witness(f"{signal} in the first stretch", float(levels[0]), "MiB"),
                Witness(f"{signal} in the last stretch", float(levels[-1]), "MiB"),
                *((second,) if second else ()),
            ),
            suggestion="Look for lists that grow in callbacks, and for models built in the loop.",
            first_step=int(steps[0]),
            last_step=step,
            severity=None if second else Severity.ADVICE,
            certainty=(
                f"{number(self.floor)} MiB and {self.share:.0%} are allowed; the lowest level of "
                "each stretch is compared, and the growth does not slow down."
            ),
        )


def _since(run: RunView, signal: str, after: int) -> tuple[Steps, Floats]:
    """First steps and lowest values of the overview's buckets behind a step."""
    overview = run.overview(signal)
    use = (overview.first_step > after) & np.isfinite(overview.min)
    return overview.first_step[use], overview.min[use]


def _also_grows(run: RunView, after: int) -> Witness | None:
    """A count that grew too, over the same time."""
    for name in COUNTS:
        lows = _since(run, name, after)[1] if run.has(name) else np.empty(0)
        halves = np.array_split(lows, 2)
        if len(lows) >= 2 and halves[1].min() > halves[0].max():
            return Witness(name, float(lows[-1]))
    return None


def _example(levels: list[float], variables: range | list[int]) -> RunHistory:
    """One sample an epoch."""
    return history(
        memory__rss=levels,
        memory__live_variables=list(variables),
        audits=[("epoch", n, {"last_step": n}) for n in range(1, len(levels) + 1)],
    )
