"""A thread that does one thing again and again until it is told to stop."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # while the database is away


class Worker(ABC):
    """Base of the background threads.

    A subclass does its work in `step`, which tests call directly. `wake` makes the next step come
    at once. While the database is away the step is tried again; any other error is a fault of ours:
    it ends the thread with a traceback, and `/readyz` says so.
    """

    name: str
    pace_seconds = 0.0  # between two steps at least, however often it is woken

    def __init__(self) -> None:
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def step(self) -> float:
        """Does what there is to do.

        Returns:
            Seconds until the next step, unless woken before; 0 where there is more to do.
        """

    def wake(self) -> None:
        self._woken.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Lets the step in hand end."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            wait = self._guarded_step()
            if wait > 0 and not self.is_stopping:  # its wake may just have been cleared
                self._woken.wait(wait)
            if self.pace_seconds:
                self._stopping.wait(self.pace_seconds)

    def _guarded_step(self) -> float:
        try:
            return self.step()
        except SQLAlchemyError:
            log.exception("%s could not use the database and tries again", self.name)
            return RETRY_SECONDS
