"""Two server processes on one PostgreSQL tell each other what happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgresql import PostgreSQL
from stage import RememberingHub, eventually

from trainsanity_server.live import Event, LiveHub
from trainsanity_server.services.relay import Relay
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.notices import Notices


class Hearing(LiveHub):
    """Remembers what came from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Event] = []

    def deliver(self, event: Event) -> None:
        self.heard.append(event)


@pytest.fixture
def database(empty_postgresql_url: str) -> Iterator[Database]:
    opened = Database(empty_postgresql_url)
    yield opened
    opened.close()


@pytest.fixture
def pair(database: Database) -> Iterator[tuple[Hearing, Hearing]]:
    hubs = Hearing(), Hearing()
    relays = [Relay(database, hub) for hub in hubs]
    for hub, relay in zip(hubs, relays, strict=True):
        hub.relay = relay.tell
        relay.step()
        relay.start()
    yield hubs
    for relay in relays:
        relay.stop()


def test_what_happens_here_is_heard_there(pair):
    here, there = pair
    here.publish(Event("alerts", "run-a"))
    eventually(lambda: Event("alerts", "run-a") in there.heard)


def test_nobody_hears_his_own_words_again(pair):
    here, there = pair
    here.publish(Event("run", "run-a"))
    there.publish(Event("run", "run-b"))
    eventually(lambda: Event("run", "run-b") in here.heard)
    assert here.heard.count(Event("run", "run-a")) == 1


def test_after_a_lost_connection_it_goes_on(pair, postgres: PostgreSQL):
    here, there = pair
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%{}%'"
    postgres.execute(others.format("LISTEN") + " AND pid <> pg_backend_pid()")
    postgres.execute(others.format("pg_notify") + " AND pid <> pg_backend_pid()")

    def heard() -> bool:
        here.publish(Event("run", "run-c"))
        return Event("run", "run-c") in there.heard

    eventually(heard)


class Restless(LiveHub):
    """Counts how often those who watch were asked to come again."""

    ended = 0

    def end_streams(self) -> None:
        self.ended += 1


def test_what_was_missed_is_looked_at_again_and_what_was_not_said_is_said(
    database: Database, postgres: PostgreSQL
):
    hub = Restless()
    relay = Relay(database, hub)
    relay.step()
    assert hub.ended == 0
    postgres.execute(
        "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"  # waits for its end
        " WHERE query LIKE '%LISTEN%' AND pid <> pg_backend_pid()"
    )
    relay.tell(Event("run", "run-d"))
    assert relay.step() > 0
    other = Notices(database)
    relay.step()
    assert hub.ended == 1
    assert any("run-d" in text for text in other.wait(20.0))
    other.close()
    relay.stop()


def test_while_the_database_is_away_nothing_grows(caplog):
    hub = RememberingHub()
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    relay = Relay(away, hub)
    for _ in range(100):
        relay.tell(Event("points", "run-a"))
    assert relay.step() > 0
    assert "lost for now" in caplog.text
    assert len(relay._waiting) <= 1
    away.close()
