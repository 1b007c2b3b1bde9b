"""Takes packets in: each is durable before it is acknowledged, many of them in one COMMIT."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from trainsanity import wire
from trainsanity_server.errors import (
    ConflictError,
    GoneError,
    MalformedError,
    UnavailableError,
)
from trainsanity_server.live import Event, LiveHub
from trainsanity_server.metrics import Metrics
from trainsanity_server.services.header import header_columns
from trainsanity_server.services.runs import Alert, alert_of
from trainsanity_server.storage import alerts as alert_rows
from trainsanity_server.storage import packets
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.packets import Arrival, Outcome
from trainsanity_server.storage.points import PointStore

MAX_BATCH_BYTES = 16 * 1024 * 1024  # in one COMMIT
MAX_WAITING_BYTES = 128 * 1024 * 1024  # in memory, not yet stored
RETRY_AFTER_SECONDS = 2
ENDED = "this server stores no packets any more; restart it, then they will be sent again"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """The answer to a packet that is stored.

    Attributes:
        cursor: to be sent with the next packet, to hear only of newer changes.
        alerts: those that changed since the cursor that came with the packet.
    """

    next_seq: int
    cursor: int
    alerts: Sequence[Alert]
    settled: bool


@dataclass(frozen=True)
class _Waiting:
    arrival: Arrival
    cursor: int
    answer: Future[Receipt]


_Result = tuple[Receipt | Exception, Outcome | None]


def arrival_of(body: bytes, run_id: str) -> Arrival:
    """Reads and checks a packet.

    Raises:
        MalformedError: it cannot be stored, ever.
    """
    try:
        packet = wire.decode(body)
    except wire.WireError as error:
        raise MalformedError(str(error)) from error
    if packet.run_id != run_id:
        raise MalformedError(
            f"run_id must be that of the address, {run_id}. Received: run_id={packet.run_id!r}"
        )
    digest = hashlib.blake2b(body, digest_size=16).digest()
    return Arrival(packet, header_columns(packet), body, digest)


def checked_run_id(text: str) -> str:
    """Raises MalformedError where a run cannot be called so."""
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise MalformedError(
        "a run's id is a UUID in lower case with hyphens, best of version 7. "
        f"Received: {text[:80]!r}"
    )


class Ingest:
    """One thread that stores packets; requests wait for its COMMIT.

    Under load many packets share a COMMIT, at rest each has its own: the batch is whatever came in
    while the last one was stored.
    """

    name = "ingest"

    def __init__(
        self,
        database: Database,
        points: PointStore,
        hub: LiveHub,
        clock: Callable[[], float],
        metrics: Metrics,
        *,
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._points = points
        self._hub = hub
        self._clock = clock
        self._metrics = metrics
        self._on_stored = on_stored
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stores what waits, then ends."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def submit(self, arrival: Arrival, cursor: int) -> Future[Receipt]:
        """The receipt comes when the packet is durable.

        Raises:
            UnavailableError: too much waits already, or the thread has died.
        """
        if not self.is_alive:
            raise UnavailableError(ENDED)
        size = len(arrival.body)
        with self._lock:
            if self._waiting_bytes + size > MAX_WAITING_BYTES:
                raise UnavailableError(
                    "the database does not keep up with what arrives; try again",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            self._waiting_bytes += size
        answer: Future[Receipt] = Future()
        self._queue.put(_Waiting(arrival, cursor, answer))
        return answer

    def _run(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                batch, is_last = self._batch(first)
                self._store(batch)
                if is_last:
                    return
        finally:
            self._turn_away()

    def _turn_away(self) -> None:
        """Nobody shall wait for a thread that has ended."""
        while not self._queue.empty():
            waiting = self._queue.get()
            if waiting is not None and waiting.answer.set_running_or_notify_cancel():
                waiting.answer.set_exception(UnavailableError(ENDED))

    def _batch(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        batch, size = [first], len(first.arrival.body)
        while size < MAX_BATCH_BYTES:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
            size += len(following.arrival.body)
        return batch, False

    def _store(self, batch: list[_Waiting]) -> None:
        with self._lock:
            self._waiting_bytes -= sum(len(w.arrival.body) for w in batch)
        # Of those whose client has gone meanwhile, nothing is stored: they will be sent again.
        batch = [w for w in batch if w.answer.set_running_or_notify_cancel()]
        try:
            results = self._results(batch)
        except BaseException as error:
            for waiting in batch:
                waiting.answer.set_exception(error)
            raise
        outcomes = [outcome for _, outcome in results]
        self._count(batch, outcomes)  # first: whoever has an answer finds it counted
        for waiting, (answer, _) in zip(batch, results, strict=True):
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        self._tell(batch, outcomes)

    def _results(self, batch: list[_Waiting]) -> list[_Result]:
        try:
            return self._database.write(lambda session: self._transaction(session, batch))
        except SQLAlchemyError as error:
            if len(batch) > 1:  # one of them must not harm the others
                return [result for waiting in batch for result in self._results([waiting])]
            log.exception("a packet could not be stored")
            return [(_unavailable(error), None)]

    def _transaction(self, session: Session, batch: list[_Waiting]) -> list[_Result]:
        arrivals = [w.arrival for w in batch]
        outcomes = packets.store(session, arrivals, self._clock(), append=self._points.append)
        return [
            (_answer(session, waiting, outcome), outcome)
            for waiting, outcome in zip(batch, outcomes, strict=True)
        ]

    def _count(self, batch: list[_Waiting], outcomes: Sequence[Outcome | None]) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                continue
            self._metrics.packets.labels(outcome.what).inc()
            if outcome.what == "stored":
                self._metrics.points.inc(waiting.arrival.packet.points)

    def _tell(self, batch: list[_Waiting], outcomes: Sequence[Outcome | None]) -> None:
        events: dict[Event, None] = {}
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if outcome is not None and outcome.what == "stored":
                run_id = waiting.arrival.packet.run_id
                events[Event("points", run_id)] = None
                if outcome.is_news:
                    events[Event("run", run_id)] = None
        for event in events:
            self._hub.publish(event)
        if events:
            self._on_stored()


def _answer(session: Session, waiting: _Waiting, outcome: Outcome) -> Receipt | Exception:
    packet = waiting.arrival.packet
    if outcome.what == "gone":
        return GoneError(
            f"run {packet.run_id} has been deleted; its packets are not taken any more"
        )
    if outcome.what == "conflict":
        return ConflictError(_conflict(packet, outcome), expected_seq=outcome.next_seq)
    alerts = []
    if outcome.alert_cursor > waiting.cursor:
        rows = alert_rows.changed_since(session, packet.run_id, waiting.cursor)
        alerts = [alert_of(row) for row in rows]
    return Receipt(outcome.next_seq, outcome.alert_cursor, alerts, outcome.is_settled)


def _conflict(packet: wire.Packet, outcome: Outcome) -> str:
    if packet.seq < outcome.next_seq:
        return (
            f"packet {packet.seq} of run {packet.run_id} is stored with other content: two "
            f"processes write the same run. Received: seq={packet.seq}. "
            f"Expected: seq={outcome.next_seq}"
        )
    known = "is not known here" if outcome.next_seq == 0 else "is not that far"
    return (
        f"run {packet.run_id} {known}. Received: seq={packet.seq}. "
        f"Expected: seq={outcome.next_seq}; send from there on"
    )


def _unavailable(error: SQLAlchemyError) -> UnavailableError:
    cause = getattr(error, "orig", None) or error
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    return UnavailableError(
        f"the database cannot be written now ({reason}); try again",
        retry_after=RETRY_AFTER_SECONDS,
    )
