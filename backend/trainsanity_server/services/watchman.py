"""Notices what nobody reports: runs that have fallen silent, and mutes that are over."""

from __future__ import annotations

import logging
from collections.abc import Callable

from trainsanity.rules.run_silent import RunSilent
from trainsanity_server.live import Event, LiveHub
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.storage import runs, watch
from trainsanity_server.storage.database import Database
from trainsanity_server.worker import Worker

log = logging.getLogger(__name__)

# Seconds after a promise to report at which it is broken: a little more than the rule allows, so
# that the rule agrees when it is asked.
GRACE_SECONDS = RunSilent.grace + 1.0
# Another process may take in a run that is due before everything known here.
LONGEST_SLEEP_SECONDS = 5.0


class Watchman(Worker):
    """The thread that wakes when the next promise to report, or the next mute, runs out.

    A silent run is no dead run: as soon as it reports again it is running again.

    Args:
        clock: seconds since the epoch.
        on_silent: called after runs were found silent, so that they are judged.
    """

    name = "watchman"

    def __init__(
        self,
        database: Database,
        alerts: Alerts,
        hub: LiveHub,
        clock: Callable[[], float],
        on_silent: Callable[[], None],
    ) -> None:
        super().__init__()
        self._database = database
        self._alerts = alerts
        self._hub = hub
        self._clock = clock
        self._on_silent = on_silent

    def start(self) -> None:
        # While the server was away nobody could report: that is not the runs' silence.
        self._database.write(lambda session: watch.give_time(session, self._clock()))
        super().start()

    def step(self) -> float:
        self._find_silent_runs()
        self._alerts.end_mutes()
        return self._seconds_to_sleep()

    def _find_silent_runs(self) -> None:
        now = self._clock()
        with self._database.read() as session:
            overdue = [row.id for row in runs.overdue(session, now - GRACE_SECONDS)]
        silent = [id_ for id_ in overdue if self._mark(id_, now - GRACE_SECONDS)]
        for id_ in silent:
            log.info("run %s has fallen silent", id_)
            self._hub.publish(Event("run", id_))
        if silent:
            self._on_silent()

    def _mark(self, run_id: str, promised: float) -> bool:
        """False where the run has reported meanwhile, or another server was faster."""
        return self._database.write(lambda session: runs.mark_silent(session, run_id, promised))

    def _seconds_to_sleep(self) -> float:
        with self._database.read() as session:
            due = watch.next_due(session, grace_seconds=GRACE_SECONDS)
        if due is None:
            return LONGEST_SLEEP_SECONDS
        return min(max(due - self._clock(), 0.0), LONGEST_SLEEP_SECONDS)
