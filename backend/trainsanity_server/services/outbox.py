"""Brings news of alerts to people: at least once, also after a crash.

News that come close together become one message, so three hundred alerts are a handful of posts.
What does not arrive is tried again for a day, ever less often; then it is dead, and people can see
that it is.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from trainsanity.rules import Witness
from trainsanity_server.channels import (
    Channel,
    DeliveryError,
    Message,
    MessageRejectedError,
    News,
)
from trainsanity_server.channels.message import Event
from trainsanity_server.services.channels import Channels
from trainsanity_server.storage import outbox as rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import OutboxRow
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
    """Rows in hand, all of one kind, and those that were left out because their alert is muted."""

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
        channels: Channels,
        *,
        base_url: str,
        clock: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._database = database
        self._channels = channels
        self._base_url = base_url
        self._clock = clock
        self._jitter = jitter
        # News in one message of a channel: fewer after a group was refused.
        self._most: dict[str, int] = {}

    def start(self) -> None:
        self._channels.prepare()
        super().start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        super().stop(timeout_seconds)
        if not self.is_alive:
            self._channels.close()

    def step(self) -> float:
        """Sends what is due, one message a channel."""
        waits = []
        for channel in self._channels:
            waits.append(self._serve(channel))
            if self.is_stopping:
                break
        return min(waits, default=IDLE_SECONDS)

    def _serve(self, channel: Channel) -> float:
        now = self._clock()
        wait = self._wait(channel, now)
        if wait > 0:
            return wait
        most = self._most.get(channel.name, rows.MOST_AT_ONCE)
        batch = self._database.write(lambda s: _claim(s, channel, now, most))
        if batch.rows:
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
            log.error("gave up news for %s, which is off (%s): %d", channel.name, reason, count)

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
            self._database.write(lambda s: self._arrived(s, channel, batch, str(answer)))
            self._allow_larger(channel)

    def _message(self, batch: _Batch) -> Message:
        news = tuple(self._news(row) for row in batch.rows)
        runs = {row.run_id for row in batch.rows}
        url = self._run_url(batch.rows[0]) if len(runs) == 1 else f"{self._base_url}/"
        return Message(Event(batch.rows[0].kind), url, news, hidden=len(batch.muted))

    def _news(self, row: OutboxRow) -> News:
        facts = dict(row.news)
        facts["witnesses"] = tuple(Witness(**witness) for witness in facts["witnesses"])
        url = f"{self._run_url(row)}#alert-{row.alert_id}"
        return News(alert_id=row.alert_id, run_id=row.run_id, url=url, **facts)

    def _run_url(self, row: OutboxRow) -> str:
        return f"{self._base_url}/runs/{row.run_id}"

    def _arrived(self, session: Session, channel: Channel, batch: _Batch, answer: str) -> None:
        rows.close(session, batch.ids, "sent", answer)
        self._channels.note(session, channel, answer)

    def _failed(self, channel: Channel, batch: _Batch, error: DeliveryError) -> None:
        log.warning("%d alerts did not reach %s: %s", len(batch.rows), channel.name, error)
        self._database.write(lambda s: self._note_failure(s, channel, batch, error))

    def _note_failure(
        self, session: Session, channel: Channel, batch: _Batch, error: DeliveryError
    ) -> None:
        now, reason = self._clock(), str(error)
        self._channels.note(session, channel, reason)
        if isinstance(error, MessageRejectedError):
            self._refused(session, channel, batch, reason)
            return
        until = now if error.permanent else now + self._delay(batch.attempts, error.retry_after)
        give_up = now - GIVE_UP_SECONDS
        rows.postpone(session, batch.ids, until, reason, dead_before=give_up)
        if error.permanent:
            self._channels.switch_off(session, channel, error)
        else:
            rows.hold(session, channel.name, until)

    def _refused(self, session: Session, channel: Channel, batch: _Batch, reason: str) -> None:
        """A single one is dead. Which part of a group was refused nobody says: try the halves."""
        if len(batch.rows) == 1:
            rows.close(session, batch.ids, "dead", reason)
            return
        self._most[channel.name] = len(batch.rows) // 2
        rows.postpone(session, batch.ids, self._clock(), reason, dead_before=0.0)

    def _allow_larger(self, channel: Channel) -> None:
        if channel.name in self._most:
            self._most[channel.name] = min(2 * self._most[channel.name], rows.MOST_AT_ONCE)

    def _delay(self, attempts: int, asked: float | None) -> float:
        """Seconds until the next attempt: as asked, else ever more, spread so as not to march."""
        if asked is not None:
            return min(asked, GIVE_UP_SECONDS)
        grown = min(FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 30), LONGEST_RETRY_SECONDS)
        return grown * (0.5 + 0.5 * self._jitter())


def _claim(session: Session, channel: Channel, now: float, most: int) -> _Batch:
    """The channel's turn and the rows for it; no rows where another process was faster."""
    if not rows.take_turn(session, channel.name, now, now + 1.0 / channel.rate):
        return _Batch((), ())
    claimed = rows.claim(session, channel.name, now, now + LEASE_SECONDS, most)
    muted = rows.muted_alerts(session, [row.alert_id for row in claimed])
    silent = [row for row in claimed if row.alert_id in muted]
    rows.close(session, [row.id for row in silent], "muted", "the alert was muted")
    return _Batch([row for row in claimed if row.alert_id not in muted], silent)
