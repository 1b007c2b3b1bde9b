"""A run on its way out of the training process: measured, spooled, sent."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trainsanity import forks, wire
from trainsanity.boundary import Boundary
from trainsanity.connection import Alert, Connection
from trainsanity.delivery import Delivery
from trainsanity.errors import RunRefused, SpoolError, log
from trainsanity.sender import Patience, Sender
from trainsanity.settings import Settings, url_option
from trainsanity.spool import SUFFIX, Spool
from trainsanity.spool_writer import MOST_BYTES, Pace, SpoolWriter
from trainsanity.wire import Audit, Block, Packet, Signal

PACE, PATIENCE = Pace(), Patience()
TIDYING_SECONDS = 0.1  # of the time to close, kept for deleting and closing files


@dataclass(frozen=True)
class CloseReport:
    """How a run left the process.

    Attributes:
        delivered: the server has everything.
        settled: the server has also judged everything; the stream's alerts are complete.
        pending_packets: packets that wait in the spool.
        spool_path: where they wait; None where nothing could be spooled.
        dropped_points: samples that could be kept nowhere, because of the disk.
        hint: one sentence that says what to do about what is not delivered; empty if all is.
    """

    delivered: bool
    settled: bool
    pending_packets: int
    spool_path: Path | None
    dropped_points: int = 0
    hint: str = ""


class RunStream:
    """Takes the evidence of one run and brings it to the server, by way of the spool.

    No method waits for disk or network, except `close`, which has a limit. In a forked child the
    stream is inert: everything may be called and does nothing.
    """

    def __init__(
        self,
        settings: Settings,
        run_id: str,
        header: Mapping[str, Any],
        on_alert: Callable[[Alert], None] | None = None,
        *,
        on_beat: Callable[[], None] = lambda: None,
        pace: Pace = PACE,
        patience: Patience = PATIENCE,
    ) -> None:
        """Opens the spool and starts to send.

        Args:
            run_id: a UUID; of a run whose spool is still there, the stream goes on.
            header: facts of the run as a whole: project, name, tags, versions ...; plain data.
            on_alert: called with every new or changed alert, in the sending thread.
            on_beat: called twice a second or so, in the writing thread; must not raise.

        Raises:
            WireError, TypeError: the header cannot be sent; the text says why.
        """
        self.run_id = run_id
        self._settings = settings
        self._pid = os.getpid()
        self._closing: float | None = None  # monotonic time at which `close` returns at the latest
        self._closing_since = 0.0  # monotonic time
        self._declared: set[str] = set()
        self._checked_names: set[tuple[str, ...]] = set()
        header = _checked(Packet(run_id, 0, 0.0, run=header)).run or {}
        self._spool, complaint = _open_spool(settings, run_id)
        self._writer = SpoolWriter(
            self._spool, run_id, header, pace, self._wake_sender, self._depart, on_beat
        )
        if complaint:
            self._writer.drop(0, complaint)
        self._sender = self._make_sender(on_alert, patience)
        self._writer.start()
        if self._sender:
            self._sender.start()
        forks.keep(self)
        atexit.register(self._at_exit)

    # measured values come in

    @property
    def step(self) -> int:
        """The last training step that the callback has seen."""
        return self._writer.step

    @step.setter
    def step(self, step: int) -> None:
        self._writer.step = step

    def declare(self, signal: Signal) -> None:
        """Says unit and label of a signal, before or after its first sample; once is enough."""
        if self._is_inert or signal.name in self._declared:
            return
        _checked(Packet(self.run_id, 0, 0.0, signals=(signal,)))
        self._declared.add(signal.name)
        self._writer.add_signal(signal)

    def update_header(self, header: Mapping[str, Any]) -> None:
        """Replaces the facts of the run as a whole, where one of them has changed."""
        if not self._is_inert:
            self._writer.header = _checked(Packet(self.run_id, 0, 0.0, run=header)).run

    def samples(self, names: tuple[str, ...], steps: ArrayLike, values: ArrayLike) -> None:
        """Takes samples of k signals at n steps; copies them.

        Args:
            names: k names, all different.
            steps: shape (n,), strictly increasing, each 0 or more.
            values: shape (k, n), float32 or float64 (anything else is made float64).

        Raises:
            WireError: names or steps are not as above.
            ValueError: the shapes do not fit.
        """
        if self._is_inert:
            return
        block = _block(names, steps, values)
        if len(block.steps):
            self._check(block)
            self._writer.add_block(block)

    def _check(self, block: Block) -> None:
        if block.names not in self._checked_names:
            # All that a server would check, once for every group of names.
            first = replace(block, steps=block.steps[:1], values=block.values[:, :1])
            _checked(Packet(self.run_id, 0, 0.0, blocks=(first,)))
            self._checked_names.add(block.names)
        if block.steps[0] < 0 or (np.diff(block.steps) <= 0).any():
            raise wire.WireError(
                "steps must increase strictly from 0 on. "
                f"Received: {block.steps[:5].tolist()} ... of {block.names[:3]}"
            )

    def audit(self, name: str, step: int, facts: Mapping[str, Any]) -> None:
        """Takes a structured fact; copies it.

        Raises:
            WireError, TypeError: the facts are no plain data, or too large; the text says which.
        """
        if self._is_inert:
            return
        packet = Packet(self.run_id, 0, 0.0, audits=(Audit(name, step, facts),))
        self._writer.add_audit(_checked(packet).audits[0], len(wire.encode(packet)))

    def pump(self) -> None:
        """What there is to tell is all in: has it written, unless the last packet is only just
        written; costs a few microseconds.
        """
        if not self._is_inert:
            self._writer.pump()

    # what is known

    @property
    def alerts(self) -> list[Alert]:
        """The latest version of every alert the server has told of."""
        return self._sender.delivery.alerts if self._sender else []

    @property
    def run_url(self) -> str:
        """The run's page; empty when offline."""
        return self._sender.delivery.run_url if self._sender else ""

    @property
    def spool_path(self) -> Path | None:
        return self._spool.path if self._spool else None

    @property
    def dropped_points(self) -> int:
        """Samples that could be kept nowhere, because of the disk."""
        return self._writer.dropped

    @property
    def _is_inert(self) -> bool:
        return self._closing is not None or self._pid != os.getpid()

    # the end

    def close(self, state: str = "finished", timeout: float | None = None) -> CloseReport:
        """Writes everything down, sends as much as the time allows, and stops both threads.

        Args:
            state: "finished" or "failed".
            timeout: seconds until this returns at the latest; default: `close_timeout`.

        Returns:
            The same report when called again.
        """
        if self._pid != os.getpid():
            return CloseReport(False, False, 0, None, 0, "The run belongs to the parent process.")
        if self._closing is None:
            seconds = self._settings.close_timeout if timeout is None else timeout
            self._closing_since = time.monotonic()
            self._closing = self._closing_since + seconds
            self._writer.end(state)
        if threading.current_thread() in (self._writer, self._sender):
            # The garbage collector has let go of a call here: these threads cannot wait for
            # themselves. The end of the process will.
            return self._report()
        self._writer.join(max(0.0, self._closing - time.monotonic()))
        atexit.unregister(self._at_exit)
        return self._report()

    def _report(self) -> CloseReport:
        pending = self._spool.pending if self._spool else 0
        delivered = self._writer.has_ended and pending == 0
        return CloseReport(
            delivered=delivered,
            settled=delivered and self._sender is not None and self._sender.delivery.settled,
            pending_packets=pending,
            spool_path=self.spool_path,
            dropped_points=self._writer.dropped,
            hint="" if delivered else self._hint(pending),
        )

    def _hint(self, pending: int) -> str:
        if self._spool is None:
            return f"Nothing was kept: {self._writer.complaint}."
        path, complaint = self._spool.path, self._writer.complaint or "the disk does not answer"
        if not self._writer.has_ended:
            return f"Not everything could be written to {path}: {complaint}."
        trouble = self._sender.trouble if self._sender else None
        if isinstance(trouble, RunRefused):
            return f"{pending} packets stay in {path} and cannot be sent: {trouble}."
        reason = f" ({trouble})" if trouble else ""
        return (
            f"{pending} packets wait in {path}{reason}. "
            f"Send them with: trainsanity sync {shlex.quote(str(path.parent))}"
            f"{url_option(self._settings.url)}"
        )

    def _depart(self) -> None:
        """All is in the spool: sends it, and tidies up. Runs in the writing thread."""
        if self._spool is None or self._closing is None:
            return
        if self._sender:
            self._sender.finish(self._closing - TIDYING_SECONDS, self._closing_since)
        with contextlib.suppress(OSError):
            is_done = self._writer.has_ended and self._spool.pending == 0
            if is_done and not self._settings.keep_spool:
                self._spool.delete()
            self._spool.close()

    def _at_exit(self) -> None:
        """The interpreter ends and nobody closed the run: it did not come to its end."""
        if self._pid != os.getpid():
            return
        report = self.close("failed")
        if report.hint:
            log.warning("%s", report.hint)

    def leave_to_parent(self) -> None:
        """In a forked child, where the threads are gone and the parent goes on."""
        self._writer.forget_locks()
        if self._spool:
            self._spool.abandon()

    # sending

    def _wake_sender(self) -> None:
        if self._sender:
            self._sender.wake()

    def _make_sender(
        self, on_alert: Callable[[Alert], None] | None, patience: Patience
    ) -> Sender | None:
        if self._spool is None or self._settings.is_offline:
            return None
        delivery = Delivery(self._spool, Connection(self._settings.url, self._settings.api_key))
        boundary = Boundary(self._note_failure)

        def tell(alert: Alert) -> None:
            if on_alert is not None:
                boundary.call("on_alert", on_alert, alert)

        return Sender(delivery, tell, patience)

    def _note_failure(self, part: str, error: BaseException, traceback: str) -> None:
        facts = {"probe": part, "error": str(error), "traceback": traceback}
        self.audit("probe_failed", self.step, facts)


def _open_spool(settings: Settings, run_id: str) -> tuple[Spool | None, str]:
    """The run's spool in its folder or, where that cannot be written, in the spare one.

    Returns:
        The spool and, where there is none, why.
    """
    first, spare = settings.spool_dir, settings.spare_spool_dir
    try:
        return Spool(first / (run_id + SUFFIX)), ""
    except OSError as error:
        reason = f"{first} cannot be written ({error})"
    except SpoolError as error:
        return None, str(error)
    try:
        spool = Spool(spare / (run_id + SUFFIX))
    except (OSError, SpoolError) as error:
        return None, f"{reason}, nor {spare} ({error})"
    log.warning("%s: this run is spooled in %s", reason, spare)
    return spool, ""


def _block(names: tuple[str, ...], steps: ArrayLike, values: ArrayLike) -> Block:
    # Copies: the caller may use its buffers again, and a view of a JAX array would keep it alive.
    own_steps = np.array(steps, dtype=np.int64)
    own_values = np.array(values)
    if own_values.dtype not in (np.float32, np.float64):
        own_values = own_values.astype(np.float64)
    if own_steps.ndim != 1 or own_values.shape != (len(names), len(own_steps)):
        raise ValueError(
            f"values must have shape (names, steps). Received: {len(names)} names, steps of shape "
            f"{own_steps.shape}, values of shape {own_values.shape}"
        )
    return Block(tuple(names), own_steps, own_values)


def _checked(packet: Packet) -> Packet:
    """The packet as a server will read it: what it would refuse is found where it is made."""
    data = wire.encode(packet)
    if len(data) > MOST_BYTES:
        raise wire.WireError(
            f"header, signals or one audit may need {MOST_BYTES} bytes. Received: {len(data)} bytes"
        )
    return wire.decode(data)
