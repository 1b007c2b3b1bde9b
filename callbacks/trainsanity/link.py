"""What connects one process with the others that train the same model: a thread of ours."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from trainsanity.backends.backend import MeetingPlace, Store
from trainsanity.boundary import Boundary
from trainsanity.run import Run
from trainsanity.tape import TapeRows

POLL_SECONDS = 0.2
LAST_POLL_SECONDS = 0.01  # at the end, where somebody waits
PATIENCE_SECONDS = 0.8  # that the end of a run may take for the others
GRACE_SECONDS = 0.2  # that the thread gets beyond it
KNOWN_SECONDS = 5.0  # after which whoever has said nothing will hardly speak at the end
MOST_WAITING = 64  # packets that wait in a process
PREFIX = "trainsanity/"


class Link:
    """The thread that speaks with the others; base of both sides.

    Args:
        on_beat: called a few times a second, in the thread.
    """

    def __init__(
        self, run: Run, place: MeetingPlace, boundary: Boundary, on_beat: Callable[[], None]
    ) -> None:
        self.trouble = ""  # with the store
        self._key = PREFIX + mark_of(run)
        self._place = place
        self._boundary = boundary
        self._on_beat = on_beat
        self._is_over = threading.Event()  # this process adds nothing any more
        self._began = time.monotonic()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="trainsanity-all", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, rows: TapeRows, epoch: int) -> None:
        """Takes rows of this process."""
        raise NotImplementedError

    def add_pass(self, row: TapeRows | None, epoch: int, keys: Iterable[str]) -> None:
        """Takes a pass of validation of this process.

        Args:
            row: of all its batches; None where it is not known.
            keys: what it shows.
        """
        raise NotImplementedError

    def together(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """New steps and columns of all processes; none but in the first one."""
        yield from ()

    def why_not(self) -> str | None:
        """Why not all batches and passes are known of all processes; None where they are."""
        return None

    def facts(self) -> dict[str, Any]:
        """Of the audit `processes`."""
        return {}

    def finish(self) -> None:
        """The run has come to its end: gives the others a moment, where they are there."""
        is_late = time.monotonic() - self._began > KNOWN_SECONDS
        self._end(0.0 if is_late and not self._knows_others() else PATIENCE_SECONDS)

    def close(self) -> None:
        """Stops the thread; safe to call twice."""
        self._end(0.0)

    def _end(self, seconds: float) -> None:
        had_its_time = self._is_over.is_set()
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self._is_over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(0.0 if had_its_time else PATIENCE_SECONDS + GRACE_SECONDS)

    def _run(self) -> None:
        self._boundary.call("processes", self._speak)

    def _speak(self) -> None:
        try:
            store = self._place.open()
            self._enter(store)
            while not self._is_done(store, is_last=self._is_over.is_set()):
                self._on_beat()
                if self._is_over.is_set():
                    if time.monotonic() >= self._deadline:
                        break
                    time.sleep(LAST_POLL_SECONDS)
                self._is_over.wait(POLL_SECONDS)
            self._leave(store)
        except RuntimeError as error:  # of the store
            self.trouble = str(error).strip().partition("\n")[0]

    def _enter(self, store: Store) -> None:
        """First of all."""

    def _is_done(self, store: Store, *, is_last: bool) -> bool:
        """One turn; `is_last` where this process adds nothing any more.

        Returns:
            Whether there is nothing left to do.
        """
        raise NotImplementedError

    def _leave(self, store: Store) -> None:
        """Last of all."""

    def _knows_others(self) -> bool:
        raise NotImplementedError


def mark_of(run: Run) -> str:
    """What processes that train one model have alike when a call begins: shapes of its weights and
    some of their elements.
    """
    found = hashlib.blake2b(run.kind.encode(), digest_size=12)
    for variable in run.model.trainable_variables:
        shape = tuple(map(int, variable.shape))
        found.update(repr(shape).encode())
        if 0 not in shape:
            corners = np.array([[0] * len(shape), [size - 1 for size in shape]], np.int64)
            found.update(run.backend.pick_value(variable, corners).tobytes())
    return found.hexdigest()


def packet_key(run_id: str, process: int, seq: int) -> str:
    return f"{PREFIX}{run_id}/{process}/{seq}"
