"""Packs what is measured into packets and appends them to the spool, in the background."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity import wire
from trainsanity.errors import log
from trainsanity.packing import Load, Pending
from trainsanity.spool import Spool
from trainsanity.wire import Audit, Block, Packet, Signal

MOST_BYTES = wire.MAX_PACKET_BYTES // 2  # evidence of a packet; the rest is room for its frame
LONGEST_PROMISE_SECONDS = 3600.0


@dataclass(frozen=True)
class Pace:
    """How often the stream does what; our own judgement.

    Attributes:
        packet_seconds: audits, and what is complete, wait at most this long for their packet.
        loose_seconds: so long do single values wait for others; longer than from one reading of the
            tape to the next.
        packet_bytes: a packet is closed as soon as this much waits.
        heartbeat_seconds: an empty packet says that the run is alive after this much quiet.
        echo_seconds: so early comes the first one after evidence: its answer tells what the rules
            made of it.
        pending_bytes: a disk that hangs costs samples beyond this much, not memory.
        silent_seconds: the shortest promise to speak again.
    """

    packet_seconds: float = 0.5
    loose_seconds: float = 2.0
    packet_bytes: int = 256 * 1024
    heartbeat_seconds: float = 20.0
    echo_seconds: float = 2.0
    pending_bytes: int = 32 * 1024 * 1024
    silent_seconds: float = 60.0


class SpoolWriter(threading.Thread):
    """The thread between the training thread, which only appends to lists, and the disk.

    Args:
        spool: None where there is none: then everything is dropped, and counted.
        on_packet: called after each packet that is in the spool.
        on_end: called after the last packet, in this thread.
        on_beat: called twice a second or so, in this thread.
    """

    def __init__(
        self,
        spool: Spool | None,
        run_id: str,
        header: Mapping[str, Any],
        pace: Pace,
        on_packet: Callable[[], None],
        on_end: Callable[[], None],
        on_beat: Callable[[], None],
    ) -> None:
        super().__init__(name="trainsanity-spool", daemon=True)
        self.step = 0  # the last training step that was seen
        self.header: Mapping[str, Any] | None = header  # until it is in a packet
        self.has_ended = False  # the last packet is in the spool
        self.dropped = 0  # samples that could be kept nowhere, in all
        self.complaint = ""  # what was wrong with the disk last
        self._spool = spool
        self._run_id = run_id
        self._pace = pace
        self._on_packet = on_packet
        self._on_end = on_end
        self._on_beat = on_beat
        self._pending = Pending()
        self._changed = threading.Condition()
        self._state = "running"
        self._untold = 0  # samples dropped of which no packet tells yet
        self._complaints: set[str] = set()
        self._last_packet = time.monotonic()
        self._longest_gap = 0.0
        self._awaits_echo = False  # rules may have spoken since the last answer
        self._is_complete = False  # what is pending is all there is to tell now

    # called by other threads; none of it waits for the disk

    def add_signal(self, signal: Signal) -> None:
        with self._changed:
            self._pending.add_signal(signal)

    def add_audit(self, audit: Audit, size: int) -> None:
        with self._changed:
            self._pending.add_audit(audit, size)
        self._wake_if_much()

    def add_block(self, block: Block) -> None:
        with self._changed:
            self.step = max(self.step, int(block.steps[-1]))
            if self._pending.size + block.values.nbytes > self._pace.pending_bytes:
                self.drop(block.points, "the disk does not keep up")
                return
            self._pending.add_block(block)
        self._wake_if_much()

    def _wake_if_much(self) -> None:
        if self._pending.size >= self._pace.packet_bytes:
            with self._changed:
                self._changed.notify_all()

    def pump(self) -> None:
        """What there is to tell is all in: a packet need not wait for more."""
        with self._changed:
            self._is_complete = bool(self._pending)
            if self._is_due():
                self._changed.notify_all()

    def drop(self, points: int, reason: str) -> None:
        """Counts what is lost, and says so once for each reason."""
        with self._changed:
            self.dropped += points
            self._untold += points
            self.complaint = reason
            is_news = reason not in self._complaints
            self._complaints.add(reason)
        if is_news:
            log.warning("evidence is being lost: %s. Training goes on.", reason)

    def end(self, state: str) -> None:
        """Has the last packet written; `on_end` follows."""
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def forget_locks(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._changed = threading.Condition()

    # this thread

    def run(self) -> None:
        while self._state == "running":
            if self._is_due() or self.header is not None or self._is_quiet():
                self._write_packets()
            self._on_beat()
            with self._changed:
                self._changed.wait_for(self._is_due, self._pace.packet_seconds)
        self._write_packets()
        self.has_ended = self._write_packet(Load(), self._state)
        if self._spool is not None:
            with contextlib.suppress(OSError):  # it has been complained about already
                self._spool.flush_to_disk()
        self._on_end()

    def _is_due(self) -> bool:
        is_much = self._pending.size >= self._pace.packet_bytes
        since = time.monotonic() - self._last_packet
        is_whole = self._is_complete or self._pending.has_audits
        wait = self._pace.packet_seconds if is_whole else self._pace.loose_seconds
        return self._state != "running" or is_much or (bool(self._pending) and since >= wait)

    def _write_packets(self) -> None:
        with self._changed:
            pending, self._pending, self._is_complete = self._pending, Pending(), False
        if self.header is not None or (not pending and self._is_quiet()):
            self._write_packet(Load())
        for load in pending.loads(MOST_BYTES):
            self._write_packet(load)

    def _is_quiet(self) -> bool:
        pace = self._pace
        limit = pace.echo_seconds if self._awaits_echo else pace.heartbeat_seconds
        return time.monotonic() - self._last_packet >= limit

    def _write_packet(self, load: Load, state: str = "running") -> bool:
        if self._spool is None:
            self.drop(load.points, self.complaint)
            return False
        header, untold = self.header, self._untold
        load.audits += self._losses(untold)
        packet = self._packet(self._spool.next_seq, load, header, state)
        try:
            self._spool.append(wire.encode(packet))
        except OSError as error:
            self.drop(load.points, f"{self._spool.path} cannot be written ({error})")
            return False
        with self._changed:
            # What came meanwhile is for the next packet.
            self.header = None if self.header is header else self.header
            self._untold -= untold
        self._awaits_echo = bool(load.blocks or load.audits)
        self._on_packet()
        return True

    def _packet(self, seq: int, load: Load, header: Mapping[str, Any] | None, state: str) -> Packet:
        return Packet(
            self._run_id,
            seq,
            time.time(),
            self.step,
            state,
            self._promise(),
            header,
            load.signals,
            load.blocks,
            load.audits,
        )

    def _promise(self) -> float:
        """Seconds within which the next packet will come for certain, by the longest pause yet."""
        now = time.monotonic()
        self._longest_gap = max(self._longest_gap, now - self._last_packet)
        self._last_packet = now
        longest = max(self._pace.silent_seconds, 10 * self._longest_gap)
        return min(LONGEST_PROMISE_SECONDS, longest)

    def _losses(self, points: int) -> list[Audit]:
        if not points:
            return []
        facts = {"points": points, "in_all": self.dropped, "reason": self.complaint}
        return [Audit("dropped", self.step, facts)]
