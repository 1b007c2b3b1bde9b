"""A few rows of the training data, and what probes audit with them as far as time allows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainsanity import fit_arguments, forward
from trainsanity.boundary import Boundary
from trainsanity.listeners import Listeners
from trainsanity.probes.probe import Probe
from trainsanity.run import Run

START_UP_SECONDS = 0.2  # that audits of the sample may take after the first batch
EPOCH_END_SECONDS = 0.5  # that those left may take at the end of an epoch
REPEATED_SECONDS = 1.0  # that audits of every epoch may take in all, however short the training is
LAST_SECONDS = 3.0  # that those left at the end of training may take at least
MOST_SECONDS = 30.0  # that audits may take at once, however long the training was
# An eager pass of the sample that takes so long makes each audit take what its `cost` says. On JAX,
# where most of the time goes into compiling, so does most of an audit's: 0.2 to 1.2 s for models
# from a small dense one to a transformer (2 cores).
PASS_SECONDS = 0.5
NONE = "audit_budget is 0"
USED_UP = "audits had used up their share of the training time, or would have with this one"
SHARED = "audits of a sample run on one copy of the model; this one is trained on several"


class SampleAudits:
    """Keeps the sample of a run and shows it to the probes, once, when the model is whole."""

    def __init__(self, run: Run, listeners: Listeners, boundary: Boundary) -> None:
        self._run = run
        self._listeners = listeners
        self._boundary = boundary
        self._opened = self._ended = time.monotonic()
        self._has_peeked = False
        self._is_shown = False
        self._left: list[Probe] = []  # whose audits are still to come
        self._spent = 0.0  # seconds, by audits so far
        self._repeated = 0.0  # of these, by audits of every epoch
        self._took: dict[str, float] = {}  # a probe's name -> seconds of its latest audit

    def take(self, probe_data: Any) -> None:
        """From what the user gave for it, or out of arrays given to the watched call."""
        run = self._run
        if run.is_shared:
            return
        if probe_data is not None:
            x, y, *weight = probe_data
            run.sample = (x, y, weight[0] if weight else None)
            return
        run.sample = self._boundary.call(
            "sample", fit_arguments.sample_of_arrays, run.fit, run.sample_rows
        )

    def begin(self) -> None:
        run = self._run
        reason = self._why_none()
        if reason is not None:
            self._refuse_all(reason)
        elif run.fit is None or run.fit.call != "fit":
            self._show()
        # Else after the first batch, which would come later for it.

    def _refuse_all(self, reason: str) -> None:
        self._is_shown = True
        for probe in self._listeners.hearing("on_sample"):
            self._run.refuse(probe, reason)

    def _why_none(self) -> str | None:
        """Why nothing of the sample may be audited; None where it may."""
        if self._run.is_shared:
            return SHARED
        return NONE if self._run.settings.audit_budget == 0 else None

    def peek(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Takes the first rows of the first batch where the data comes from a Python iterator.

        Returns:
            The arguments of the train function, which still give this batch.
        """
        run = self._run
        if run.sample is not None or run.is_shared or self._has_peeked:
            return args
        self._has_peeked = True
        # Outside the boundary: what the user's data raises is the user's.
        peeked = run.backend.peek(args[-1])
        if peeked is None:
            return args
        batch, data = peeked
        run.sample = self._of_batch(batch)
        return (*args[:-1], data)

    def before_execution(self, args: tuple[Any, ...]) -> None:
        """Between the first execution of the train function and the second, which gets `args`."""
        run = self._run
        if self._is_shown or run.step == 0:
            return
        if run.backend.READABLE_IN_EPOCH:
            self._show()
        elif run.sample is not None:
            self._boundary.call("sample", self._show_whole, args)

    def _show_whole(self, args: tuple[Any, ...]) -> None:
        """Where variables are empty within an epoch."""
        with self._run.backend.made_whole(self._run.model, args) as is_whole:
            if is_whole:
                self._show(is_borrowed=True)

    def at_epoch_end(self, epoch: int) -> None:
        self._audit(min(MOST_SECONDS, max(EPOCH_END_SECONDS, self._time_left())))
        self._show()
        probes = self._listeners.hearing("on_epoch_sample")
        if self._run.settings.audit_budget:
            self._repeat(probes, epoch)
        elif not self._took:
            self._took = dict.fromkeys((p.name for p in probes), 0.0)
            once = self._listeners.hearing("on_sample")
            for probe in [p for p in probes if p not in once]:
                self._run.refuse(probe, NONE)

    def _time_left(self) -> float:
        """Of the share of the training time so far, in seconds."""
        elapsed = time.monotonic() - self._opened
        return self._run.settings.audit_budget * elapsed - self._spent

    def _repeat(self, probes: list[Probe], epoch: int) -> None:
        """What is audited at the end of every epoch for which there is time."""
        for probe in probes:
            expected = self._took.get(probe.name, 0.0)
            is_little = self._repeated + expected <= REPEATED_SECONDS
            if expected > MOST_SECONDS or not (is_little or expected <= self._time_left()):
                continue
            started = time.monotonic()
            with self._as_if_never():
                self._listeners.tell_one(probe, "on_epoch_sample", epoch)
            self._took[probe.name] = took = time.monotonic() - started
            self._spent += took
            self._repeated += took

    @contextmanager
    def _as_if_never(self) -> Iterator[None]:
        """Within, names, traces and imports leave nothing behind that training could notice."""
        own_traces = self._run.backend.own_traces()
        with forward.names_untouched(), own_traces, forward.tensorflow_as_imported():
            yield

    def end(self) -> None:
        """What is left, as far as the share of the training time allows it."""
        self._show()
        if not self._is_shown:
            self._refuse_all(self._run.not_testable.get("sample", fit_arguments.NO_SAMPLE))
        self._ended = time.monotonic()
        spent = self._ended - self._opened
        share = self._run.settings.audit_budget * spent
        self._audit(min(MOST_SECONDS, max(LAST_SECONDS, share)))
        while self._left:
            self._run.refuse(self._left.pop(0), USED_UP)

    def released(self) -> None:
        """Those of the model as it is without our taps, at the end."""
        is_none = self._run.settings.audit_budget == 0
        for probe in sorted(self._listeners.hearing("on_released"), key=lambda p: p.cost):
            is_late = time.monotonic() - self._ended >= MOST_SECONDS
            if probe.cost and (is_none or is_late):
                self._run.refuse(probe, NONE if is_none else USED_UP)
            else:
                with self._as_if_never():
                    self._listeners.tell_one(probe, "on_released")

    def _show(self, *, is_borrowed: bool = False) -> None:
        run = self._run
        if self._is_shown or not run.model.built:
            return
        if run.sample is None:
            caught = self._boundary.call("sample", run.backend.caught_sample, run)
            run.sample = None if caught is None else self._of_batch(caught)
        if run.sample is None:
            return
        self._is_shown = True
        self._left = sorted(self._listeners.hearing("on_sample"), key=lambda p: p.cost)
        self._audit(START_UP_SECONDS, is_borrowed=is_borrowed)

    def _of_batch(self, batch: Any) -> Any:
        rows = self._run.sample_rows
        return self._boundary.call("sample", fit_arguments.sample_of_batch, batch, rows)

    def _audit(self, seconds: float, *, is_borrowed: bool = False) -> None:
        """Until the time is up; the other probes wait for an epoch end. Those that run functions
        which Keras compiles do so too where the variables are borrowed from the step.
        """
        if not self._left:
            return
        started = time.monotonic()
        with self._as_if_never():
            for probe in [p for p in self._left if not (is_borrowed and p.runs_compiled)]:
                used = time.monotonic() - started + self._expected(probe)
                if used >= seconds and not self._is_nearly_done(probe):
                    break
                self._left.remove(probe)
                self._listeners.tell_one(probe, "on_sample")
        self._spent += time.monotonic() - started
        self._run.shared.pop("passes", None)  # the tensors take memory

    def _expected(self, probe: Probe) -> float:
        """Seconds that the audit is about to take; 0 as long as no pass has been timed."""
        return probe.cost * float(self._run.shared.get("pass_seconds", 0.0)) / PASS_SECONDS

    def _is_nearly_done(self, probe: Probe) -> bool:
        """Whether it needs nothing but the pass that another one has just asked for."""
        return not probe.cost and "passes" in self._run.shared
