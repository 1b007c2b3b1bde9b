"""The parts of one running server, as requests see them. They are put together in `app.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from trainsanity_server.live import LiveHub
from trainsanity_server.metrics import Metrics
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.services.channels import Channels
from trainsanity_server.services.deletion import Deletion
from trainsanity_server.services.ingest import Ingest
from trainsanity_server.services.outbox import Outbox
from trainsanity_server.services.runs import Runs
from trainsanity_server.services.signals import Signals
from trainsanity_server.settings import Settings
from trainsanity_server.storage.database import Database

Clock = Callable[[], float]


class Background(Protocol):
    """A thread of the server."""

    name: str

    @property
    def is_alive(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    """Everything a request may need.

    Attributes:
        clock: seconds since the epoch; nothing else tells the time.
        threads: in the order in which they start.
    """

    settings: Settings
    clock: Clock
    database: Database
    hub: LiveHub
    metrics: Metrics
    ingest: Ingest
    runs: Runs
    signals: Signals
    alerts: Alerts
    deletion: Deletion
    channels: Channels
    outbox: Outbox
    threads: Sequence[Background]


async def _parts(request: Request) -> Parts:
    # A plain `def` would cost a trip to another thread.
    return cast(Parts, request.app.state.parts)


PartsOf = Annotated[Parts, Depends(_parts)]
