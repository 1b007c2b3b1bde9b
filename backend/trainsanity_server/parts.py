"""The parts of one running server, as requests see them. They are put together in `app.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from trainsanity_server.live import LiveHub
from trainsanity_server.services.channels import Channels
from trainsanity_server.services.outbox import Outbox
from trainsanity_server.services.runs import Runs
from trainsanity_server.settings import Settings
from trainsanity_server.storage.database import Database

Clock = Callable[[], float]


@dataclass(frozen=True)
class Parts:
    """Everything a request may need.

    Attributes:
        clock: seconds since the epoch; nothing else tells the time.
    """

    settings: Settings
    clock: Clock
    database: Database
    hub: LiveHub
    runs: Runs
    channels: Channels
    outbox: Outbox


def _parts(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


PartsOf = Annotated[Parts, Depends(_parts)]
