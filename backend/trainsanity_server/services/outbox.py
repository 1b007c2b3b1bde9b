"""Brings news of alerts to people: at least once, also after a crash.

News that come close together become one message, so three hundred alerts are a handful of posts.
What does not arrive is tried again for a day, ever less often; then it is dead, and people can see
that it is.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from trainsanity.rules import Witness
from trainsanity_server.channels import (
    Answer,
    Channel,
    DeliveryError,
    Message,
    MessageRejectedError,
    News,
)
from trainsanity_server.channels.message import Event
from trainsanity_server.storage import outbox as rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import ChannelRow, OutboxRow
from trainsanity_server.worker import Worker

log = logging.getLogger(__name__)

GATHER_SECONDS = 1.5  # news that come this close together share a message
LEASE_SECONDS = 60.0  # longer than any attempt; then another process may try
FIRST_RETRY_SECONDS = 2.0  # doubled with every attempt
LONGEST_RETRY_SECONDS = 3600.0
GIVE_UP_SECONDS = 86400.0  # age at which news that cannot be delivered is dead
IDLE_SECONDS = 30.0  # between two looks when nothing waits; news of this process wake us


@dataclass(frozen=True)
class _Batch:
    """Rows in hand, all of one kind."""

    rows: Sequence[OutboxRow]
    muted: Sequence[OutboxRow]

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]

    @property
    def attempts(self) -> int:
        return max(row.attempts for row in self.rows)


class Outbox(Worker):
    """The thread that empties the outbox.

    Args:
        base_url: address under which people reach this server, for links.
        clock: seconds since the epoch.
        jitter: a number between 0 and 1, so that several servers do not retry in step.
    """

    name = "outbox"

    def __init__(
        self,
        database: Database,
        channels: Sequence[Channel],
        *,
        base_url: str,
        clock: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._database = database
        self._channels = {channel.name: channel for channel in channels}
        self._base_url = base_url
        self._clock = clock
        self._jitter = jitter

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Those whose outbox news is put into."""
        return tuple(self._channels)

    def start(self) -> None:
        self.prepare()
        super().start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        super().stop(timeout_seconds)
        if not self.is_alive:
            for channel in self._channels.values():
                channel.close()

    def prepare(self) -> None:
        """Notes how the channels are configured; a new address is switched on again."""
        for channel in self._channels.values():
            self._database.write(partial(_configure, channel=channel, trouble=_trouble(channel)))

    def step(self) -> float:
        """Sends what is due, one message a channel."""
        waits = []
        for channel in self._channels.values():
            waits.append(self._serve(channel))
            if self.is_stopping:
                break
        return min(waits, default=IDLE_SECONDS)

    def _serve(self, channel: Channel) -> float:
        now = self._clock()
        wait = self._wait(channel, now)
        if wait > 0:
            return wait
        batch = self._database.write(lambda s: _claim(s, channel, now))
        if batch is not None and batch.rows:
            self._deliver(channel, batch)
        return 0.0

    def _wait(self, channel: Channel, now: float) -> float:
        """Seconds until there is something to do for the channel."""
        with self._database.read() as session:
            row = rows.channel(session, channel.name)
            due = rows.next_due(session, channel.name)
        if row is None or due is None:
            return IDLE_SECONDS
        if row.state == "off":
            self._bury(channel, row.off_reason, now)
            return IDLE_SECONDS
        return min(max(due + GATHER_SECONDS, row.next_send_at) - now, IDLE_SECONDS)

    def _bury(self, channel: Channel, reason: str, now: float) -> None:
        before = now - GIVE_UP_SECONDS
        count = self._database.write(lambda s: rows.bury(s, channel.name, before, reason))
        if count:
            log.error("gave up %d messages for %s, which is off: %s", count, channel.name, reason)

    def _deliver(self, channel: Channel, batch: _Batch) -> None:
        try:
            answer = channel.send(self._message(batch))
        except DeliveryError as error:
            self._failed(channel, batch, error)
        except Exception as error:  # one broken channel must not silence the others
            log.exception("channel %s broke while sending", channel.name)
            reason = f"sending failed inside the server: {type(error).__name__}: {error}"
            self._failed(channel, batch, DeliveryError(reason))
        else:
            self._database.write(lambda s: self._arrived(s, channel, batch, answer))

    def _message(self, batch: _Batch) -> Message:
        news = tuple(self._news(row) for row in batch.rows)
        runs = {row.run_id for row in batch.rows}
        url = self._run_url(batch.rows[0].run_id) if len(runs) == 1 else f"{self._base_url}/"
        return Message(Event(batch.rows[0].kind), url, news, hidden=len(batch.muted))

    def _news(self, row: OutboxRow) -> News:
        facts = dict(row.news)
        witnesses = tuple(Witness(**witness) for witness in facts.pop("witnesses"))
        url = f"{self._run_url(row.run_id)}#alert-{row.alert_id}"
        return News(alert_id=row.alert_id, run_id=row.run_id, url=url, witnesses=witnesses, **facts)

    def _run_url(self, run_id: str) -> str:
        return f"{self._base_url}/runs/{run_id}"

    def _arrived(self, session: Session, channel: Channel, batch: _Batch, answer: Answer) -> None:
        rows.close(session, batch.ids, "sent", str(answer))
        self._note(session, channel, str(answer))

    def _failed(self, channel: Channel, batch: _Batch, error: DeliveryError) -> None:
        log.warning("%d alerts did not reach %s: %s", len(batch.rows), channel.name, error)
        self._database.write(lambda s: self._note_failure(s, channel, batch, error))

    def _note_failure(
        self, session: Session, channel: Channel, batch: _Batch, error: DeliveryError
    ) -> None:
        now, reason = self._clock(), str(error)
        self._note(session, channel, reason)
        if isinstance(error, MessageRejectedError):
            rows.close(session, batch.ids, "dead", reason)
            return
        until = now if error.permanent else now + self._delay(batch.attempts, error.retry_after)
        give_up = now - GIVE_UP_SECONDS
        rows.postpone(session, batch.ids, until, reason, dead_before=give_up)
        if error.permanent:
            _switch_off(session, channel, error)
        else:
            rows.hold(session, channel.name, until)

    def _delay(self, attempts: int, asked: float | None) -> float:
        """Seconds until the next attempt: as asked, else ever more, spread so as not to march."""
        grown = FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 30)
        own = min(grown, LONGEST_RETRY_SECONDS) * (0.5 + 0.5 * self._jitter())
        return own if asked is None else min(asked, GIVE_UP_SECONDS)

    def _note(self, session: Session, channel: Channel, answer: str) -> None:
        row = rows.channel(session, channel.name)
        if row is not None:
            row.last_answer, row.last_answer_at = answer, self._clock()

    # for people

    def test(self, name: str) -> Answer:
        """Sends a test message now; if it arrives, the channel is on again.

        Raises:
            KeyError: no channel of this name is configured.
            DeliveryError: it did not arrive.
        """
        channel = self._channels[name]
        try:
            answer = channel.send(Message(Event.TEST, f"{self._base_url}/"))
        except DeliveryError as error:
            self._database.write(partial(self._test_failed, channel=channel, error=error))
            raise
        self._database.write(lambda s: self._test_arrived(s, channel, answer))
        self.wake()
        return answer

    def _test_failed(self, session: Session, channel: Channel, error: DeliveryError) -> None:
        self._note(session, channel, str(error))
        if error.permanent:
            _switch_off(session, channel, error)

    def _test_arrived(self, session: Session, channel: Channel, answer: Answer) -> None:
        _configure(session, channel, None)
        row = rows.channel(session, channel.name)
        assert row is not None
        row.state, row.off_reason = "on", ""
        row.next_send_at = self._clock() + 1.0 / channel.rate
        self._note(session, channel, str(answer))


def _claim(session: Session, channel: Channel, now: float) -> _Batch | None:
    """The channel's turn and the rows for it; None where another process was faster."""
    if not rows.take_turn(session, channel.name, now, now + 1.0 / channel.rate):
        return None
    claimed = rows.claim(session, channel.name, now, now + LEASE_SECONDS)
    muted = rows.muted_alerts(session, [row.alert_id for row in claimed])
    silent = [row for row in claimed if row.alert_id in muted]
    rows.close(session, [row.id for row in silent], "muted", "the alert was muted")
    return _Batch([row for row in claimed if row.alert_id not in muted], silent)


def _trouble(channel: Channel) -> DeliveryError | None:
    try:
        channel.check()
    except DeliveryError as error:
        return error
    return None


def _configure(session: Session, channel: Channel, trouble: DeliveryError | None) -> None:
    digest = hashlib.sha256(channel.address.encode()).hexdigest()
    row = rows.channel(session, channel.name)
    if row is None:
        row = ChannelRow(name=channel.name)
        session.add(row)
        session.flush()
    if row.address_digest != digest:
        row.address_digest, row.state, row.off_reason, row.next_send_at = digest, "on", "", 0.0
        row.last_answer, row.last_answer_at = "", None
    if trouble is not None:
        _switch_off(session, channel, trouble)


def _switch_off(session: Session, channel: Channel, error: DeliveryError) -> None:
    log.error("channel %s is off: %s", channel.name, error)
    row = rows.channel(session, channel.name)
    assert row is not None
    row.state, row.off_reason = "off", str(error)
    if error.answer is None:
        # Our own configuration is at fault: look at it anew at the next start.
        row.address_digest = ""
