"""A run on its way out of the training process: measured, spooled, sent.

The training thread only appends to lists. One background thread packs and writes the spool, another
one sends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shlex
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trainsanity import wire
from trainsanity.boundary import Boundary
from trainsanity.connection import Alert, Connection
from trainsanity.errors import SpoolError, log
from trainsanity.packing import Load, Pending
from trainsanity.sender import Delivery, Patience, Sender
from trainsanity.settings import Settings
from trainsanity.spool import SUFFIX, Spool
from trainsanity.wire import Audit, Block, Packet, Signal

_MOST = wire.MAX_PACKET_BYTES // 2  # bytes of evidence in a packet; the rest is room for the frame
_TIDYING_SECONDS = 0.1  # of the time to close, kept for deleting and closing files


@dataclass(frozen=True)
class Pace:
    """How often the stream does what; our own judgement.

    Attributes:
        packet_seconds: measured values wait at most this long for their packet.
        packet_bytes: a packet is closed as soon as this much waits.
        heartbeat_seconds: an empty packet says that the run is alive after this much quiet.
        pending_bytes: a disk that hangs costs samples beyond this much, not memory.
        silent_seconds: the shortest promise to speak again.
    """

    packet_seconds: float = 0.5
    packet_bytes: int = 256 * 1024
    heartbeat_seconds: float = 20.0
    pending_bytes: int = 32 * 1024 * 1024
    silent_seconds: float = 60.0


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


PACE, PATIENCE = Pace(), Patience()


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
        pace: Pace = PACE,
        patience: Patience = PATIENCE,
    ) -> None:
        """Opens the spool and starts to send.

        Args:
            run_id: a UUID; of a run whose spool is still there, the stream goes on.
            header: facts of the run as a whole: project, name, tags, versions ...; plain data.
            on_alert: called with every new or changed alert, in the sending thread.

        Raises:
            WireError, TypeError: the header cannot be sent; the text says why.
        """
        self.run_id = run_id
        self.step = 0  # the last training step that the callback has seen
        self._settings = settings
        self._pace = pace
        self._patience = patience
        self._header: Mapping[str, Any] | None = _checked(Packet(run_id, 0, 0.0, run=header)).run
        self._pid = os.getpid()
        self._declared: set[str] = set()
        self._checked_names: set[tuple[str, ...]] = set()
        self._pending = Pending()
        self._changed = threading.Condition()
        self._closing: float | None = None  # monotonic time at which `close` returns at the latest
        self._state = "running"
        self._ended = False  # the last packet is in the spool
        self._dropped = 0  # samples, in all
        self._untold = 0  # of these, samples of which no packet tells yet
        self._complaint = ""  # what is wrong with the disk, while it is wrong
        self._last_packet = time.monotonic()
        self._longest_gap = 0.0
        self._spool = self._open_spool()
        self._sender = self._start_sender(on_alert)
        self._writer = threading.Thread(target=self._write, name="trainsanity-spool", daemon=True)
        self._writer.start()
        _streams.add(self)
        _watch_forks()
        atexit.register(self._at_exit)

    # measured values come in; the training thread calls these

    def declare(self, signal: Signal) -> None:
        """Says unit and label of a signal, before or after its first sample; once is enough."""
        if self._is_inert or signal.name in self._declared:
            return
        _checked(Packet(self.run_id, 0, 0.0, signals=(signal,)))
        with self._changed:
            self._declared.add(signal.name)
            self._pending.add_signal(signal)

    def update_header(self, header: Mapping[str, Any]) -> None:
        """Replaces the facts of the run as a whole, where one of them has changed."""
        if not self._is_inert:
            self._header = _checked(Packet(self.run_id, 0, 0.0, run=header)).run

    def samples(self, names: tuple[str, ...], steps: ArrayLike, values: ArrayLike) -> None:
        """Takes samples of k signals at n steps; copies them.

        Args:
            names: k names, all different.
            steps: shape (n,), strictly increasing, each 0 or more.
            values: shape (k, n), float32 or float64 (anything else is made float64).

        Raises:
            WireError: names or steps are not as above. ValueError: the shapes do not fit.
        """
        if self._is_inert:
            return
        block = _block(names, steps, values)
        if not len(block.steps):
            return
        self._check(block)
        with self._changed:
            self.step = max(self.step, int(block.steps[-1]))
            if self._pending.size + block.values.nbytes > self._pace.pending_bytes:
                self._drop(block.points, "the disk does not keep up")
                return
            self._pending.add_block(block)
        self.pump()

    def _check(self, block: Block) -> None:
        if block.names not in self._checked_names:
            # All that a server would check, once for every group of names.
            _checked(
                Packet(
                    self.run_id,
                    0,
                    0.0,
                    blocks=(replace(block, steps=block.steps[:1], values=block.values[:, :1]),),
                )
            )
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
        with self._changed:
            self._pending.add_audit(_checked(packet).audits[0], len(wire.encode(packet)))
        self.pump()

    def pump(self) -> None:
        """Has a packet written if enough has come together; costs about a microsecond."""
        if not self._is_inert and self._pending.size >= self._pace.packet_bytes:
            with self._changed:
                self._changed.notify_all()

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
        return self._dropped

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
            return CloseReport(False, False, 0, None, 0, "the run belongs to the parent process")
        if timeout is None:
            timeout = self._settings.close_timeout
        with self._changed:
            if self._closing is None:
                self._state = state
                self._closing = time.monotonic() + timeout
                self._changed.notify_all()
        self._writer.join(max(0.0, self._closing - time.monotonic()))
        atexit.unregister(self._at_exit)
        return self._report()

    def _report(self) -> CloseReport:
        spool = self._spool
        pending = spool.pending if spool else 0
        delivered = self._ended and pending == 0
        return CloseReport(
            delivered=delivered,
            settled=delivered and self._sender is not None and self._sender.delivery.settled,
            pending_packets=pending,
            spool_path=spool.path if spool else None,
            dropped_points=self._dropped,
            hint="" if delivered else self._hint(pending),
        )

    def _hint(self, pending: int) -> str:
        if self._spool is None:
            return f"Nothing was kept: {self._complaint}."
        if not self._ended:
            return f"Not everything could be written to {self._spool.path}: {self._complaint}."
        reason = f" ({self._sender.trouble})" if self._sender and self._sender.trouble else ""
        folder = shlex.quote(str(self._spool.path.parent))
        return (
            f"{pending} packets wait in {self._spool.path}{reason}. "
            f"Send them with: trainsanity sync {folder}"
        )

    def _at_exit(self) -> None:
        """The interpreter ends and nobody closed the run: it did not come to its end."""
        if self._pid != os.getpid():
            return
        report = self.close("failed")
        if report.hint:
            log.warning("%s", report.hint)

    # the spool; everything below runs in the writing thread

    def _write(self) -> None:
        while self._closing is None:
            self._write_packets()
            with self._changed:
                self._changed.wait_for(self._is_due, self._pace.packet_seconds)
        self._write_packets()
        self._finish()

    def _is_due(self) -> bool:
        return self._closing is not None or self._pending.size >= self._pace.packet_bytes

    def _write_packets(self) -> None:
        with self._changed:
            pending, self._pending = self._pending, Pending()
        if self._header is not None or (not pending and self._is_quiet()):
            self._write_packet(Load())
        for load in pending.loads(_MOST):
            self._write_packet(load)

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._last_packet >= self._pace.heartbeat_seconds

    def _write_packet(self, load: Load, state: str = "running") -> bool:
        spool, header = self._spool, self._header
        if spool is None:
            self._drop(load.points, self._complaint)
            return False
        packet = Packet(
            self.run_id,
            spool.next_seq,
            time.time(),
            self.step,
            state,
            self._promise(),
            header,
            load.signals,
            load.blocks,
            [*load.audits, *self._losses()],
        )
        try:
            spool.append(wire.encode(packet))
        except OSError as error:
            self._drop(load.points, f"{spool.path} cannot be written ({error})")
            return False
        if self._header is header:  # else it changed meanwhile
            self._header = None
        self._untold, self._complaint = 0, ""
        if self._sender:
            self._sender.wake()
        return True

    def _promise(self) -> float:
        """Seconds within which the next packet will certainly come, by the longest pause so far."""
        now = time.monotonic()
        self._longest_gap = max(self._longest_gap, now - self._last_packet)
        self._last_packet = now
        return min(3600.0, max(self._pace.silent_seconds, 10 * self._longest_gap))

    def _losses(self) -> list[Audit]:
        if not self._untold:
            return []
        facts = {"points": self._untold, "in_all": self._dropped, "reason": self._complaint}
        return [Audit("dropped", self.step, facts)]

    def _drop(self, points: int, reason: str) -> None:
        with self._changed:
            self._dropped += points
            self._untold += points
            is_news, self._complaint = not self._complaint, reason
        if is_news:
            log.warning("evidence is being lost: %s. Training goes on.", reason)

    def _finish(self) -> None:
        """The last packet, onto the disk, to the server, and out."""
        spool, deadline = self._spool, self._closing
        self._ended = self._write_packet(Load(), self._state)
        if spool is None or deadline is None:
            return
        with contextlib.suppress(OSError):  # `append` has complained already
            spool.flush_to_disk()
        if self._sender:
            self._sender.finish(deadline - _TIDYING_SECONDS)
        with contextlib.suppress(OSError):
            if self._ended and spool.pending == 0 and not self._settings.keep_spool:
                spool.delete()
            spool.close()

    def _open_spool(self) -> Spool | None:
        """The run's spool in its folder or, where that cannot be written, in the spare one."""
        first, spare = self._settings.spool_dir, self._settings.spare_spool_dir
        try:
            return Spool(first / (self.run_id + SUFFIX))
        except OSError as error:
            reason = f"{first} cannot be written ({error})"
        except SpoolError as error:
            self._drop(0, str(error))
            return None
        try:
            spool = Spool(spare / (self.run_id + SUFFIX))
        except (OSError, SpoolError) as error:
            self._drop(0, f"{reason}, nor {spare} ({error})")
            return None
        log.warning("%s: this run is spooled in %s", reason, spare)
        return spool

    def _start_sender(self, on_alert: Callable[[Alert], None] | None) -> Sender | None:
        if self._spool is None or self._settings.is_offline:
            return None
        delivery = Delivery(self._spool, Connection(self._settings.url, self._settings.api_key))
        boundary = Boundary(self._note_failure)

        def tell(alert: Alert) -> None:
            if on_alert is not None:
                boundary.call("on_alert", on_alert, alert)

        sender = Sender(delivery, tell, self._patience)
        sender.start()
        return sender

    def _note_failure(self, part: str, error: BaseException, traceback: str) -> None:
        facts = {"probe": part, "error": str(error), "traceback": traceback}
        self.audit("probe_failed", self.step, facts)

    def _go_inert(self) -> None:
        """In a forked child, where the threads are gone and the parent goes on."""
        self._changed = threading.Condition()  # another thread may have held the old one
        if self._spool:
            self._spool.abandon()


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
    if len(data) > _MOST:
        raise wire.WireError(
            f"header, signals or one audit may need {_MOST} bytes. Received: {len(data)} bytes"
        )
    return wire.decode(data)


_streams: weakref.WeakSet[RunStream] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_all_inert)


def _all_inert() -> None:
    for stream in list(_streams):
        stream._go_inert()
