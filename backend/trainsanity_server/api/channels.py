"""The ways by which alerts reach people, and a real test of each."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter

from trainsanity_server.api.shapes import PROBLEMS, Shape
from trainsanity_server.parts import PartsOf

router = APIRouter(prefix="/channels", tags=["channels"], responses=PROBLEMS)


class GivenUp(Shape):
    """A piece of news that never arrived, and what was answered last."""

    alert_id: str
    run_id: str
    kind: Literal["opened", "resolved"]
    severity: str
    title: str
    run_name: str
    project: str
    created_at: datetime
    answer: str


class Channel(Shape):
    """A channel; "absent" where `setting` is not set. Counts are pieces of news.

    `given_up` are the newest of the dead ones.
    """

    name: str
    title: str
    state: Literal["on", "off", "absent"]
    setting: str
    off_reason: str
    address: str
    last_answer: str
    last_answer_at: datetime | None
    waiting: int
    sent: int
    muted: int
    dead: int
    given_up: list[GivenUp]


class ChannelList(Shape):
    channels: list[Channel]


class Retried(Shape):
    """How many pieces of news wait again."""

    waiting_again: int


class Trial(Shape):
    """What became of a test message; `status` and `body` are the other side's own words."""

    delivered: bool
    status: int | None
    body: str
    reason: str


@router.get("", response_model=ChannelList)
def list_channels(parts: PartsOf) -> Any:
    return {"channels": parts.channels.list()}


@router.post("/{name}/test", response_model=Trial)
def test_channel(parts: PartsOf, name: str) -> Any:
    """Sends a real message now, and waits for the answer."""
    trial = parts.channels.test(name)
    parts.outbox.wake()
    return trial


@router.post("/{name}/retry", response_model=Retried)
def retry_channel(parts: PartsOf, name: str) -> Any:
    """Tries once more what was given up."""
    count = parts.channels.try_again(name)
    parts.outbox.wake()
    return {"waiting_again": count}
