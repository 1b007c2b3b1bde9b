"""What the host reads from the tapes and hands on to probes and stream."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from trainsanity.boundary import Boundary
from trainsanity.listeners import Listeners
from trainsanity.passes import Pass
from trainsanity.run import Run
from trainsanity.tape import TapeReader, TapeRows

if TYPE_CHECKING:
    from trainsanity.link import Link

# A tape is read after this time even if few batches have run. Each reading takes 2 to 7 ms of the
# training thread and makes a packet, for which a server beside the training takes 25 ms of a
# processor. Two seconds after a batch its alerts shall be seen.
READ_SECONDS = 1.4
SLOW_READ_SECONDS = 1.0  # readings that belong to no step, such as memory


class Readings:
    """Reads the two tapes of a run; `train` and `test` are None where no taps are in the step."""

    def __init__(self, run: Run, listeners: Listeners, boundary: Boundary) -> None:
        self._run = run
        self._listeners = listeners
        self._boundary = boundary
        self.train: TapeReader | None = None
        self.test: TapeReader | None = None
        self.link: Link | None = None  # with processes that train the same model
        self._pass: Pass | None = None  # of validation, under way, that other processes share
        self._unread_tests = 0
        self._last_read = 0.0
        self._last_slow_read = 0.0
        self._told = (1, True)  # stride, and whether it was known what turns take

    @property
    def taped_step(self) -> int | None:
        """The step that the tape has counted; None where there is no tape."""
        if self.train is None or "tape" in self._boundary.off:
            return None
        return self.train.step

    def after_training(self, result: Any, batches: int) -> None:
        """After an execution of the train function: reads now and then."""
        reader = self.train
        if reader is None:
            return
        new = self._boundary.call("tape", reader.note, self._run.model, result, batches)
        if new and self._is_time_to_read(reader):
            self.read_train()
            self.send()

    def _is_time_to_read(self, reader: TapeReader) -> bool:
        every = self._run.settings.update_freq
        behind = self._run.step - reader.step
        if every == "epoch":
            return behind >= reader.tape.depth // 2
        if isinstance(every, int):
            return behind >= min(every, reader.tape.depth // 2)
        if not self._run.backend.READABLE_IN_EPOCH:
            return True  # what has come is as old as a copy; these are made every COPY_SECONDS
        is_much = behind >= reader.tape.depth // 4
        return is_much or time.monotonic() - self._last_read >= READ_SECONDS

    def read_train(self, *, whole: bool = False) -> None:
        """`whole` where the model's variables are in place, as at the end of an epoch."""
        if self.train is None:
            return
        self._last_read = time.monotonic()
        rows = self._boundary.call("tape", self.train.read, whole)
        self._pass_on(rows, "on_rows", "latest")
        self.slow()

    def after_testing(self, result: Any, batches: int) -> None:
        reader = self.test
        if reader is None:
            return
        new = self._boundary.call("tape", reader.note, self._run.model, result, batches)
        self._unread_tests += batches
        if new and self._unread_tests >= reader.tape.depth // 4:
            self.read_test()
            self.send()

    def send(self) -> None:
        """All that is known by now has been handed in, and need not wait for more."""
        self._boundary.call("stream", self._run.stream.pump)

    def read_test(self, *, whole: bool = False) -> None:
        if self.test is None:
            return
        self._unread_tests = 0
        rows = self._boundary.call("tape", self.test.read, whole)
        self._pass_on_tests(rows)

    def begin_test(self) -> None:
        """Before a test pass of ours: leaves out rows of passes that were not."""
        if self.test is not None:
            self._boundary.call("tape", self.test.skip, self._run.model, None)
        is_shared = self.link is not None and self._run.kind == "fit"
        self._pass = Pass() if is_shared else None

    def end_test(self, keys: Iterable[str]) -> None:
        """After it, when all of it was read.

        Args:
            keys: what it has shown.
        """
        if self._pass is not None:
            self._boundary.call("processes", self._share_pass, self._pass, keys)
            self._pass = None

    def read_before(self, args: tuple[Any, ...], *, training: bool) -> None:
        """Reads all that was written before an execution that gets these arguments: one that is
        not ours, or has failed.
        """
        reader = self.train if training else self.test
        if reader is None:
            return
        rows = self._boundary.call("tape", reader.read_before, self._run.model, args)
        if training:
            self._pass_on(rows, "on_rows", "latest")
        else:
            self._pass_on_tests(rows)

    def after_foreign(self, result: Any, *, training: bool) -> None:
        """After it: leaves out what it has written."""
        reader = self.train if training else self.test
        if reader is not None:
            self._boundary.call("tape", reader.skip, self._run.model, result)

    def slow(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._last_slow_read >= SLOW_READ_SECONDS:
            self._last_slow_read = now
            self._listeners.tell("on_sample_time")

    def _pass_on_tests(self, rows: TapeRows | None) -> None:
        if self._pass is not None:
            self._boundary.call("processes", self._pass.add, rows)
        self._pass_on(rows, "on_test_rows", "test_latest")

    def _pass_on(self, rows: TapeRows | None, hook: str, latest: str) -> None:
        if rows is None or not len(rows):
            return
        run = self._run
        made: dict[str, Any] = {}
        for columns in self._listeners.ask(hook, rows):
            made.update(columns)
        shown = {k: v for k, v in rows.columns.items() if not k.startswith("_")}
        columns = {**shown, **made}
        known = {name: values[-1] for name, values in columns.items() if name not in rows.gaps}
        run.shared[latest] = {name: float(value) for name, value in known.items()}
        if hook == "on_rows" and np.any(rows.columns.get("loss/nonfinite", 0.0) > 0):
            run.pace.look_always()
        if run.kind == "evaluate":
            run.step = int(rows.steps[-1])
        if hook == "on_rows" or run.kind == "evaluate":
            for steps, block in rows.blocks(columns):
                self._boundary.call("stream", run.emit, steps, block)
            self._boundary.call("stream", self._say_thinned, rows)
            self._boundary.call("processes", self._share, rows)
        if rows.without_place:
            some = ", ".join(sorted(rows.without_place)[:3])
            run.not_testable["tape"] = (
                f"the tape is too narrow for {len(rows.without_place)} numbers of each batch, such "
                f"as {some}: the model has more metrics or outputs than was reckoned with"
            )
        if rows.lost:
            self._boundary.call("tape", self._report_lost, rows.lost)

    def _share(self, rows: TapeRows) -> None:
        if self.link is not None:
            self.link.add(rows, self._run.epoch)
            self.pass_on_together()

    def _share_pass(self, shared: Pass, keys: Iterable[str]) -> None:
        if self.link is not None:
            row = None if self.test is None else shared.row(self._run.step)
            self.link.add_pass(row, self._run.epoch, keys)
            self.pass_on_together()

    def pass_on_together(self) -> None:
        """What is new of all processes."""
        if self.link is not None:
            for steps, columns in self.link.together():
                self._run.emit(steps, columns)
                self._run.not_testable.pop("processes", None)  # the end will say how it went on

    def _say_thinned(self, rows: TapeRows) -> None:
        """What was not measured at every step, why, and how often it was; again where that
        changes much.
        """
        pace = self._run.test_pace if self._run.kind == "evaluate" else self._run.pace
        names = sorted(name for name in rows.gaps if not name.startswith("_"))
        stride, knew = self._told
        is_told = knew == pace.knows_cost and 0.5 < pace.stride / stride < 2
        if not names or pace.stride < 2 or is_told:
            return
        self._told = (pace.stride, pace.knows_cost)
        facts = {"signal": ", ".join(names), "reason": pace.reason, "stride": pace.stride}
        self._run.audit("thinned", facts)

    def _report_lost(self, lost: int) -> None:
        reason = f"{lost} batches were overwritten before they could be read"
        self._run.audit("thinned", {"signal": "*", "reason": reason, "stride": 1})
