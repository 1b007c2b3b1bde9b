"""Passes live events on between the server processes that share one PostgreSQL."""

from __future__ import annotations

import json
import logging
import threading

from trainsanity_server.live import Event, LiveHub
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import new_id
from trainsanity_server.storage.notices import Notices, NoticesLostError
from trainsanity_server.worker import RETRY_SECONDS, Worker

log = logging.getLogger(__name__)

LISTEN_SECONDS = 0.1  # then what happened here is told the others


class Relay(Worker):
    """The thread that tells other processes what happened here, and the hub what happened there.

    While the database is away nothing is heard of other processes: when it is back, whoever watches
    here looks at everything anew.
    """

    name = "relay"

    def __init__(self, database: Database, hub: LiveHub) -> None:
        super().__init__()
        self._database = database
        self._hub = hub
        self._own = new_id()
        self._lock = threading.Lock()
        self._waiting: dict[Event, None] = {}  # equal ones once, so it cannot grow
        self._notices: Notices | None = None
        self._has_missed = False  # what others said

    def tell(self, event: Event) -> None:
        """Called from any thread for what happened here."""
        with self._lock:
            self._waiting[event] = None

    def step(self) -> float:
        try:
            if self._notices is None:
                self._notices = self._listen()
            self._speak(self._notices)
            for text in self._notices.wait(LISTEN_SECONDS):
                self._hear(text)
        except NoticesLostError as error:
            log.warning("live events of other processes are lost for now: %s", error)
            self._notices = None
            self._has_missed = True
            return RETRY_SECONDS
        return 0.0

    def _listen(self) -> Notices:
        notices = Notices(self._database)
        if self._has_missed:
            self._hub.end_streams()
            self._has_missed = False
        return notices

    def stop(self, timeout_seconds: float = 10.0) -> None:
        super().stop(timeout_seconds)
        if self._notices is not None:
            self._notices.close()

    def _speak(self, notices: Notices) -> None:
        with self._lock:
            events, self._waiting = self._waiting, {}
        try:
            notices.send(json.dumps([self._own, event.kind, event.run_id]) for event in events)
        except NoticesLostError:
            with self._lock:
                self._waiting = events | self._waiting
            raise

    def _hear(self, text: str) -> None:
        sender, kind, run_id = json.loads(text)
        if sender != self._own:
            self._hub.deliver(Event(kind, run_id))
