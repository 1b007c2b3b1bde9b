"""Brings a spool to the server: packet by packet, in order, and never twice."""

from __future__ import annotations

import time
from dataclasses import replace

from trainsanity import wire
from trainsanity.connection import ANSWER_SECONDS, Alert, Answer, Connection
from trainsanity.errors import DeliveryError, RunRefused, SpoolDamaged, WrongPacket, log
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
        except OSError as error:
            raise DeliveryError(f"{self.spool.path} cannot be read ({error})") from error
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
            raise RunRefused(
                f"{self._connection.url} has another run of this id. "
                f"Received: run_id={self.spool.run_id!r}, of which it has {expected} packets that "
                "are not ours. Leave run_id out, or give each run an id of its own",
                status=409,
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
