"""Events from the threads that write, to the streams that people hold open.

An event says *that* something changed, never what; whoever cares asks for it. So a lost or a merged
event costs nothing but a moment.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

Kind = Literal["run", "points", "alerts"]


@dataclass(frozen=True)
class Event:
    """Something of a run changed.

    Attributes:
        kind: "run": it appeared, changed its state or was deleted; "points": more evidence;
            "alerts": alerts or verdicts.
        run_id: of which run.
    """

    kind: Kind
    run_id: str


class Subscription:
    """Events that one stream has not read yet; equal ones are kept once, so it cannot grow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run_id: str | None) -> None:
        self._loop = loop
        self._run_id = run_id
        self._waiting: dict[Event, None] = {}
        self._news = asyncio.Event()
        self.is_closed = False  # the stream shall end

    def offer(self, event: Event) -> None:
        """Called from any thread."""
        if self._run_id in (None, event.run_id):
            self._loop.call_soon_threadsafe(self._keep, event)

    def _keep(self, event: Event) -> None:
        self._waiting[event] = None
        self._news.set()

    def close(self) -> None:
        """Called from any thread."""
        self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self.is_closed = True
        self._news.set()

    async def next(self) -> list[Event]:
        """Waits until something happens; gives all that happened since, once each."""
        await self._news.wait()
        self._news.clear()
        events, self._waiting = list(self._waiting), {}
        return events


class LiveHub:
    """Passes events on to all subscriptions of this process.

    Attributes:
        relay: is given everything that is published here, for other processes.
    """

    def __init__(self) -> None:
        self.relay: Callable[[Event], None] | None = None
        self._lock = threading.Lock()
        self._subscriptions: set[Subscription] = set()
        self._is_closed = False

    def publish(self, event: Event) -> None:
        """Never blocks; called from any thread."""
        self.deliver(event)
        if self.relay is not None:
            self.relay(event)

    def deliver(self, event: Event) -> None:
        """Only to those who watch in this process."""
        with self._lock:
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.offer(event)

    def close(self) -> None:
        """Ends all streams, so that a server that stops need not wait for open pages."""
        with self._lock:
            self._is_closed = True
        self.end_streams()

    def end_streams(self) -> None:
        """Whoever watches comes again and looks at everything anew: events may have been missed."""
        with self._lock:
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.close()

    @asynccontextmanager
    async def subscribe(self, run_id: str | None = None) -> AsyncIterator[Subscription]:
        """Events of one run, or of all.

        >>> async with hub.subscribe(run_id) as subscription:
        ...     events = await subscription.next()
        """
        subscription = Subscription(asyncio.get_running_loop(), run_id)
        with self._lock:
            self._subscriptions.add(subscription)
            subscription.is_closed = self._is_closed
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.discard(subscription)

    @property
    def watchers(self) -> int:
        with self._lock:
            return len(self._subscriptions)
