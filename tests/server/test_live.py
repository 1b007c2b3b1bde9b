"""Events find those who watch."""

from __future__ import annotations

import asyncio
import threading

from trainsanity_server.live import Event, LiveHub

A, B = "run-a", "run-b"


def test_a_watcher_hears_what_happens():
    async def play() -> list[Event]:
        hub = LiveHub()
        async with hub.subscribe() as subscription:
            hub.publish(Event("run", A))
            hub.publish(Event("alerts", B))
            return await subscription.next()

    assert asyncio.run(play()) == [Event("run", A), Event("alerts", B)]


def test_a_watcher_of_one_run_hears_of_that_one():
    async def play() -> list[Event]:
        hub = LiveHub()
        async with hub.subscribe(A) as subscription:
            hub.publish(Event("points", B))
            hub.publish(Event("points", A))
            return await subscription.next()

    assert asyncio.run(play()) == [Event("points", A)]


def test_a_slow_watcher_hears_each_thing_once():
    """However much happens, what waits does not grow."""

    async def play() -> list[Event]:
        hub = LiveHub()
        async with hub.subscribe() as subscription:
            for _ in range(10_000):
                hub.publish(Event("points", A))
            return await subscription.next()

    assert asyncio.run(play()) == [Event("points", A)]


def test_events_come_from_any_thread():
    async def play() -> list[Event]:
        hub = LiveHub()
        async with hub.subscribe() as subscription:
            thread = threading.Thread(target=hub.publish, args=[Event("run", A)])
            thread.start()
            found = await asyncio.wait_for(subscription.next(), 20)
            thread.join()
            return found

    assert asyncio.run(play()) == [Event("run", A)]


def test_what_happens_while_a_watcher_works_is_not_lost():
    async def play() -> list[list[Event]]:
        hub = LiveHub()
        async with hub.subscribe() as subscription:
            hub.publish(Event("run", A))
            first = await subscription.next()
            hub.publish(Event("run", A))
            return [first, await asyncio.wait_for(subscription.next(), 20)]

    assert asyncio.run(play()) == [[Event("run", A)], [Event("run", A)]]


def test_who_has_gone_is_forgotten():
    async def play() -> list[int]:
        hub = LiveHub()
        async with hub.subscribe(), hub.subscribe(A):
            during = hub.watchers
        return [during, hub.watchers]

    assert asyncio.run(play()) == [2, 0]
    LiveHub().publish(Event("run", A))
