"""Brings a spool to the server: packet by packet, again after every fault, and never twice."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from trainsanity import wire
from trainsanity.connection import ANSWER_SECONDS, Alert, Answer, Connection
from trainsanity.errors import DeliveryError, SpoolClosed, SpoolDamaged, WrongPacket, log
from trainsanity.spool import Spool
from trainsanity.wire import Audit, Packet

TOO_BAD = (413, 422)  # a server's words for: this packet, never
MOST_DETOURS = 2  # without getting any farther; more would be running in circles
PACKETS_A_NOTE = 100  # between two notes of what the server has; after a crash they are sent twice


class Delivery:
    """The state of sending one spool to one server. Has no thread, waits only for answers."""

    def __init__(self, spool: Spool, connection: Connection) -> None:
        self.spool = spool
        self.run_url = f"{connection.url}/runs/{spool.run_id}"
        self.settled = False
        self._connection = connection
        self._alerts: dict[str, Alert] = {}
        self._cursor = 0
        self._detours = 0  # 409 without getting any farther in between
        self._farthest_detour = 0  # the packet at which the last ones came
        # Packets in place of which the server has, or may have, another one from us.
        self._replaced = {wire.decode(payload).seq for payload in spool.set_aside_before()}
        # The highest packet that the server can have from us: of an old spool perhaps everything.
        self._attempted = spool.next_seq - 1 if spool.is_reopened else -1
        self.server_has = 0  # packets, by its last answer

    @property
    def alerts(self) -> list[Alert]:
        return list(self._alerts.values())

    def send_next(self, seconds: float = ANSWER_SECONDS) -> list[Alert]:
        """Sends the oldest packet that the server does not have.

        Returns:
            Alerts that are new or have changed.

        Raises:
            DeliveryError: the server did not take it.
        """
        seq = self.spool.acknowledged
        self._attempted = max(self._attempted, seq)
        try:
            answer = self._send(seq, seconds)
        except WrongPacket as error:
            self._follow(error, seq)
            return []
        self._acknowledge(seq, answer.next_seq)
        if seq >= self._farthest_detour:
            self._detours = 0
        self._cursor, self.settled, self.run_url = answer.cursor, answer.settled, answer.run_url
        return self._news(answer.alerts)

    def _send(self, seq: int, seconds: float) -> Answer:
        try:
            payload = self.spool.read(seq)
        except SpoolDamaged as error:
            log.warning("%s; the server is told so", error)
            self._replaced.add(seq)
            return self._post(_instead_of(self.spool.run_id, seq, str(error)), seconds)
        try:
            return self._connection.send(self.spool.run_id, payload, self._cursor, seconds)
        except DeliveryError as error:
            if error.status not in TOO_BAD:
                raise
            return self._send_without_evidence(seq, payload, error, seconds)

    def _send_without_evidence(
        self, seq: int, payload: bytes, refusal: DeliveryError, seconds: float
    ) -> Answer:
        """One packet that the server will never take must not hold up those behind it."""
        if seq not in self._replaced:
            self._keep_aside(seq, payload, refusal)
        packet = wire.decode(payload)
        facts = {"seq": seq, "bytes": len(payload), "points": packet.points, "answer": str(refusal)}
        told = replace(packet, blocks=(), audits=(Audit("packet_refused", packet.step, facts),))
        try:
            return self._post(told, seconds)
        except DeliveryError as error:
            if error.status not in TOO_BAD:
                raise
        return self._post(replace(told, run=None, signals=(), audits=()), seconds)

    def _keep_aside(self, seq: int, payload: bytes, refusal: DeliveryError) -> None:
        try:
            path = self.spool.set_aside(payload)
        except OSError as error:
            raise DeliveryError(f"a refused packet cannot be kept: {error}") from error
        self._replaced.add(seq)
        log.warning("packet %d was refused and is kept in %s: %s", seq, path, refusal)

    def _post(self, packet: Packet, seconds: float) -> Answer:
        data = wire.encode(packet)
        return self._connection.send(self.spool.run_id, data, self._cursor, seconds)

    def _acknowledge(self, seq: int, next_seq: int) -> None:
        self.server_has = next_seq
        # More than this spool holds: a power cut took the end of it, after it had been sent.
        is_possible = self.spool.is_reopened or next_seq <= self._attempted + 1
        if next_seq <= seq or not is_possible:
            raise DeliveryError(f"the server took packet {seq} and wants packet {next_seq} next")
        self.spool.acknowledge(min(next_seq, self.spool.next_seq))
        if next_seq % PACKETS_A_NOTE == 0 or not self.spool.pending:
            self.spool.note_acknowledged()

    def _follow(self, error: WrongPacket, seq: int) -> None:
        """Goes to the packet that the server wants: mostly back, for another database."""
        expected = error.expected_seq
        is_stored_replaced = seq in self._replaced and expected <= self._attempted + 1
        if expected > seq and not is_stored_replaced:
            # Had it been ours, the server would have known it again.
            raise DeliveryError(
                f"{error}. Another process used the same run_id; give each run its own",
                status=409,
                permanent=True,
            )
        if expected < seq:
            self._cursor = 0  # it counts in a database that is no more
        self.spool.acknowledge(expected)
        self._detours += 1
        self._farthest_detour = max(self._farthest_detour, seq)
        if expected == seq or self._detours > MOST_DETOURS:
            self._detours = 0
            raise DeliveryError(f"the server contradicts itself: {error}", status=409)

    def look_if_settled(self, seconds: float) -> None:
        """Asks whether every rule has spoken."""
        self.settled = bool(self._connection.run(self.spool.run_id, seconds).get("settled"))

    def fetch_alerts(self, seconds: float) -> list[Alert]:
        """All alerts of the run as they are now; returns what is new or has changed."""
        return self._news(self._connection.alerts(self.spool.run_id, seconds))

    def close(self) -> None:
        self._connection.close()

    def _news(self, alerts: list[Alert]) -> list[Alert]:
        news = [alert for alert in alerts if self._alerts.get(str(alert.get("id"))) != alert]
        self._alerts.update({str(alert.get("id")): alert for alert in news})
        return news


def _instead_of(run_id: str, seq: int, reason: str) -> Packet:
    return Packet(
        run_id, seq, time.time(), audits=(Audit("packet_damaged", 0, {"reason": reason}),)
    )


@dataclass(frozen=True)
class Patience:
    """How long the sender waits for what; our own judgement.

    Attributes:
        first, most: seconds before the second attempt, and before any later one; doubling between.
        refused: seconds between attempts while the server says no (a key may be put right).
        tell_after: attempts in a row that may fail before the user hears of it.
        last_attempt: seconds that closing spends on a server that has taken nothing lately.
        look: seconds between two looks whether the run is settled.
    """

    first: float = 0.5
    most: float = 60.0
    refused: float = 60.0
    tell_after: int = 3
    last_attempt: float = 2.0
    look: float = 0.1


class Sender(threading.Thread):
    """Sends in the background for as long as the run lasts."""

    def __init__(
        self,
        delivery: Delivery,
        on_news: Callable[[Alert], None],
        patience: Patience = Patience(),
    ) -> None:
        """`on_news` gets every new or changed alert, in this thread, and must not raise."""
        super().__init__(name="trainsanity-send", daemon=True)
        self.delivery = delivery
        self._on_news = on_news
        self._patience = patience
        self._woken = threading.Condition()
        self._has_work = True
        self._deadline: float | None = None  # monotonic time, once the run is closing
        self._closing_since = 0.0  # monotonic time
        self._was_failing = False  # when closing began
        self._has_delivered = False  # at least one packet
        self.trouble = ""  # the last fault, until something is delivered again
        self._failures = 0  # in a row
        self._has_told = False  # about this row of failures
        self._done = threading.Event()

    def wake(self) -> None:
        """There is a new packet."""
        with self._woken:
            self._has_work = True
            self._woken.notify_all()

    def finish(self, deadline: float) -> None:
        """Waits until all is sent and settled, or `deadline` (monotonic time) comes."""
        with self._woken:
            self._was_failing = self._failures > 0
            self._closing_since = time.monotonic()
            self._deadline = deadline
            self._has_work = True
            self._woken.notify_all()
        left = max(0.0, deadline - time.monotonic())
        # A server that has been away for a while shall not hold up the end of training.
        self._done.wait(min(left, self._patience.last_attempt) if self._was_failing else left)

    def run(self) -> None:
        try:
            while not self._done.is_set():
                self._attempt()
        except SpoolClosed:
            log.debug("the run was closed while a packet was on its way")
        finally:
            self.delivery.close()
            self._done.set()

    def _attempt(self) -> None:
        is_last = self._deadline is not None
        try:
            self._send_all()
        except DeliveryError as error:
            pause = self._pause_after(error)
            if is_last and self._gives_up(error, pause):
                self._done.set()
            else:
                self._wait_out(pause, is_last)
            return
        if is_last:
            self._settle()
            self._done.set()
        else:
            self._wait_for_work()

    def _send_all(self) -> None:
        self._has_work = False
        while self.delivery.spool.pending:
            self._tell(self.delivery.send_next(self._seconds()))
            self.trouble, self._failures, self._has_told = "", 0, False
            self._has_delivered = True

    def _settle(self) -> None:
        """All is there: waits until it is judged. A fault costs nothing but this knowledge."""
        try:
            while not self.delivery.settled and self._seconds() > self._patience.look:
                self._done.wait(self._patience.look)
                self.delivery.look_if_settled(self._seconds())
            self._tell(self.delivery.fetch_alerts(self._seconds()))
        except DeliveryError as error:
            log.info("the run is delivered, but its last alerts could not be read: %s", error)

    def _tell(self, news: list[Alert]) -> None:
        for alert in news:
            self._on_news(alert)

    def _seconds(self) -> float:
        """Time for one answer."""
        if self._deadline is None:
            return ANSWER_SECONDS
        return max(0.05, min(ANSWER_SECONDS, self._deadline - time.monotonic()))

    def _pause_after(self, error: DeliveryError) -> float:
        self.trouble = str(error)
        self._failures += 1
        if not self._has_told and (error.permanent or self._failures >= self._patience.tell_after):
            self._has_told = True
            log.warning(
                "%s. Training goes on; what is measured waits in %s.",
                error,
                self.delivery.spool.path,
            )
        if error.permanent:
            return self._patience.refused
        if error.retry_after is not None:
            return error.retry_after
        longest = min(
            self._patience.most, self._patience.first * 2.0 ** min(self._failures - 1, 20)
        )
        return longest * random.uniform(0.5, 1.0)  # so that a hundred runs do not come back at once

    def _gives_up(self, error: DeliveryError, pause: float) -> bool:
        again = time.monotonic() + pause
        is_late = self._deadline is not None and again > self._deadline
        is_unknown = not self._has_delivered
        was_long = again - self._closing_since > self._patience.last_attempt
        return self._was_failing or error.permanent or is_late or (is_unknown and was_long)

    def _wait_for_work(self) -> None:
        with self._woken:
            self._woken.wait_for(lambda: self._has_work)

    def _wait_out(self, pause: float, is_last: bool) -> None:
        """A new packet is no reason to ask a faulty server sooner; the end of the run is one."""
        with self._woken:
            self._woken.wait_for(lambda: self._deadline is not None and not is_last, pause)
