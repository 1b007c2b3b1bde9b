"""A server without HTTP: its parts, and a clock that stands still."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from fastapi import FastAPI
from rules_for_tests import rulebook

from trainsanity import wire
from trainsanity.wire import Packet
from trainsanity_server.live import Event, LiveHub
from trainsanity_server.metrics import Metrics
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.services.deletion import Deletion
from trainsanity_server.services.ingest import Ingest, Receipt, arrival_of
from trainsanity_server.services.judge import Judge
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.services.runs import Runs
from trainsanity_server.services.signals import Signals
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.sql_points import SqlPointStore

PATIENCE_SECONDS = 20.0
MakeApp = Callable[..., FastAPI]  # settings by name -> application


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self, now: float = 2_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class RememberingHub(LiveHub):
    """Also keeps what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Event] = []

    def publish(self, event: Event) -> None:
        self.published.append(event)
        super().publish(event)


class Stage:
    """Everything between a packet's bytes and the answers of the services."""

    def __init__(
        self,
        database: Database,
        clock: Clock | None = None,
        *,
        rules: Rulebook | None = None,
        channels: Iterable[str] = (),
    ) -> None:
        self.database = database
        self.clock = clock or Clock()
        self.hub = RememberingHub()
        self.points = SqlPointStore(database)
        self.alerts = Alerts(database, self.hub, self.clock, channels=channels)
        self.rules = rules or rulebook()
        self.judge = self.another_judge()
        self.metrics = Metrics()
        self.ingest = Ingest(database, self.points, self.hub, self.clock, self.metrics)
        self.runs = Runs(database)
        self.signals = Signals(database, self.points)
        self.deletion = Deletion(database, self.points, self.hub, self.clock)

    def another_judge(self) -> Judge:
        """As in another process, or after a restart."""
        return Judge(
            self.database, self.points, self.alerts, self.hub, self.clock, rulebook=self.rules
        )

    def __enter__(self) -> Self:
        self.ingest.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.ingest.stop()

    def send(self, packet: Packet, cursor: int = 0) -> Receipt:
        arrival = arrival_of(wire.encode(packet), packet.run_id)
        return self.ingest.submit(arrival, cursor).result(PATIENCE_SECONDS)

    def send_all(self, packets: Sequence[Packet]) -> Receipt:
        return [self.send(packet) for packet in packets][-1]

    def judge_all(self) -> None:
        """Until there is nothing left to judge."""
        self.clock.advance(1.0)
        while self.judge.step() == 0.0:
            pass

    def play(self, packets: Sequence[Packet]) -> None:
        """Sends and judges one packet after the other."""
        for packet in packets:
            self.send(packet)
            self.judge_all()


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what a thread is about to do."""
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends_at, "it never happened"
        time.sleep(0.005)
