"""The state of each channel: on or off and why, what was answered last, what waits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from trainsanity_server.channels import Channel, DeliveryError, Message, channel_types
from trainsanity_server.channels.message import Event
from trainsanity_server.errors import ConflictError, NotFoundError
from trainsanity_server.storage import outbox as rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import ChannelRow, OutboxRow

log = logging.getLogger(__name__)

SHOWN_GIVEN_UP = 20  # pieces of news that people see of those that never arrived


@dataclass(frozen=True)
class GivenUp:
    """A piece of news that never arrived, and what was answered last."""

    alert_id: str
    run_id: str
    kind: str  # "opened" or "resolved"
    severity: str
    title: str
    run_name: str
    project: str
    created_at: float  # seconds since the epoch
    answer: str


@dataclass(frozen=True)
class ChannelStatus:
    """A channel as people see it; the counts are pieces of news, by what became of them."""

    name: str
    title: str
    state: str  # "on", "off", or "absent" where it is not set up
    setting: str  # what to set where it is absent
    off_reason: str
    address: str  # masked
    last_answer: str
    last_answer_at: float | None  # seconds since the epoch
    waiting: int
    sent: int
    muted: int
    dead: int
    given_up: Sequence[GivenUp] = ()  # the newest of the dead


@dataclass(frozen=True)
class Trial:
    """What became of a test message; `status` and `body` are the other side's own words."""

    delivered: bool
    status: int | None
    body: str
    reason: str = ""


class Channels:
    """The channels that the operator has set up.

    Args:
        base_url: address under which people reach this server, for links.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        channels: Sequence[Channel],
        *,
        base_url: str,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._channels = {channel.name: channel for channel in channels}
        self._base_url = base_url
        self._clock = clock

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Those for which news is put into the outbox."""
        return tuple(self._channels)

    def prepare(self) -> None:
        """Notes how the channels are set up; one with a new address is on again."""
        for channel in self:
            self._database.write(partial(_set_up, channel=channel))
            try:
                channel.check()
            except DeliveryError as error:
                self._database.write(partial(self.switch_off, channel=channel, error=error))

    def close(self) -> None:
        for channel in self:
            channel.close()

    def note(self, session: Session, channel: Channel, answer: str) -> None:
        row = _row(session, channel)
        row.last_answer, row.last_answer_at = answer, self._clock()

    def switch_off(self, session: Session, channel: Channel, error: DeliveryError) -> None:
        """Nothing more is sent until a person has changed something."""
        log.error("channel %s is off: %s", channel.name, error)
        row = _row(session, channel)
        row.state, row.off_reason = "off", str(error)
        if error.answer is None:
            # Our own configuration is at fault: look at it anew at the next start.
            row.address_digest = ""

    # for people

    def list(self) -> list[ChannelStatus]:
        """Every channel there is, set up or not."""
        with self._database.read() as session:
            counts = rows.counts(session)
            return [
                self._status(session, kind, counts.get(kind.name, {})) for kind in channel_types()
            ]

    def status(self, name: str) -> ChannelStatus:
        """One channel, set up or not.

        Raises:
            NotFoundError: there is no such channel.
        """
        for channel in self.list():
            if channel.name == name:
                return channel
        raise _unknown(name)

    def _status(
        self, session: Session, kind: type[Channel], counts: dict[str, int]
    ) -> ChannelStatus:
        row = rows.channel(session, kind.name) or ChannelRow()
        dead = rows.dead(session, kind.name, SHOWN_GIVEN_UP) if counts.get("dead") else ()
        channel = self._channels.get(kind.name)
        return ChannelStatus(
            name=kind.name,
            title=kind.title,
            state=row.state if channel else "absent",
            setting=kind.setting,
            off_reason=row.off_reason if channel else "",
            address=channel.masked_address if channel else "",
            last_answer=row.last_answer or "",
            last_answer_at=row.last_answer_at,
            waiting=counts.get("waiting", 0),
            sent=counts.get("sent", 0),
            muted=counts.get("muted", 0),
            dead=counts.get("dead", 0),
            given_up=[_given_up(row) for row in dead],
        )

    def try_again(self, name: str) -> int:
        """What was given up gets one more attempt, and more where it is younger than a day.

        Raises:
            NotFoundError: there is no such channel.
            ConflictError: it is not set up, or off.
        """
        channel = self._named(name)
        return self._database.write(lambda session: self._revive(session, channel))

    def _revive(self, session: Session, channel: Channel) -> int:
        row = _row(session, channel)
        if row.state == "off":
            raise ConflictError(
                f"{channel.title} is off: {row.off_reason} Send a test message first; "
                "if it arrives, the channel is on again."
            )
        return rows.revive(session, channel.name, self._clock())

    def test(self, name: str) -> Trial:
        """Sends a test message now; if it arrives, the channel is on again.

        Raises:
            NotFoundError: there is no such channel.
            ConflictError: it is not set up.
        """
        channel = self._named(name)
        try:
            answer = channel.send(Message(Event.TEST, f"{self._base_url}/"))
        except DeliveryError as error:
            self._database.write(partial(self._test_failed, channel=channel, error=error))
            status, body = (error.answer.status, error.answer.body) if error.answer else (None, "")
            return Trial(False, status, body, str(error))
        self._database.write(partial(self._test_arrived, channel=channel, answer=str(answer)))
        return Trial(True, answer.status, answer.body)

    def _named(self, name: str) -> Channel:
        if name in self._channels:
            return self._channels[name]
        for kind in channel_types():
            if kind.name == name:
                raise ConflictError(f"{kind.title} is not set up: set {kind.setting}")
        raise _unknown(name)

    def _test_failed(self, session: Session, channel: Channel, error: DeliveryError) -> None:
        self.note(session, channel, str(error))
        if error.permanent:
            self.switch_off(session, channel, error)

    def _test_arrived(self, session: Session, channel: Channel, answer: str) -> None:
        row = _row(session, channel)
        row.state, row.off_reason, row.address_digest = "on", "", _digest(channel)
        row.next_send_at = self._clock() + 1.0 / channel.rate
        self.note(session, channel, answer)


def _unknown(name: str) -> NotFoundError:
    known = ", ".join(kind.name for kind in channel_types())
    return NotFoundError(f"there is no channel {name!r}. Known channels: {known}")


def _given_up(row: OutboxRow) -> GivenUp:
    told = ("severity", "title", "run_name", "project")
    return GivenUp(
        alert_id=row.alert_id,
        run_id=row.run_id,
        kind=row.kind,
        created_at=row.created_at,
        answer=row.last_answer,
        **{name: row.news.get(name) or "" for name in told},
    )


def _set_up(session: Session, channel: Channel) -> None:
    row = _row(session, channel)
    if row.address_digest != _digest(channel):
        row.address_digest, row.state, row.off_reason = _digest(channel), "on", ""
        row.next_send_at, row.last_answer, row.last_answer_at = 0.0, "", None


def _row(session: Session, channel: Channel) -> ChannelRow:
    row = rows.channel(session, channel.name)
    if row is None:
        row = ChannelRow(name=channel.name)
        session.add(row)
        session.flush()
    return row


def _digest(channel: Channel) -> str:
    return hashlib.sha256(channel.address.encode()).hexdigest()
