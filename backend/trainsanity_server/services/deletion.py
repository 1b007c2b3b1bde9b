"""Deletes runs: at once for whoever looks, bit by bit in the database."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from trainsanity_server.live import Event, LiveHub
from trainsanity_server.services.runs import checked_id, found
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.points import PointStore
from trainsanity_server.worker import Worker

BATCH_ROWS = 256  # deleted in one transaction, so that nobody waits long
IDLE_SECONDS = 60.0  # between two looks for what another process left behind


class Deletion(Worker):
    """Marks runs as deleted, and is the thread that sweeps up after them."""

    name = "deletion"

    def __init__(
        self,
        database: Database,
        points: PointStore,
        hub: LiveHub,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self._database = database
        self._points = points
        self._hub = hub
        self._clock = clock

    def delete(self, run_id: str) -> None:
        """From now on nobody sees the run, and its client is told that it is gone.

        Raises:
            NotFoundError: there is none.
        """
        key = checked_id(run_id)
        self._database.write(lambda session: self._mark(session, key))
        self._hub.publish(Event("run", key))
        self._hub.publish(Event("alerts", key))  # its alerts stand open no more
        self.wake()

    def _mark(self, session: Session, run_id: str) -> None:
        run = found(run_rows.locked(session, run_id), run_id)
        run.deleted_at, run.judge_due_at, run.alarm_after = self._clock(), None, None

    def step(self) -> float:
        """Deletes some rows of one deleted run."""
        with self._database.read() as session:
            run_id = run_rows.to_sweep(session)
        if run_id is None:
            return IDLE_SECONDS
        if not self._points.delete(run_id, limit=BATCH_ROWS):
            self._database.write(lambda session: run_rows.sweep(session, run_id))
            self._database.give_back_space()
        return 0.0
