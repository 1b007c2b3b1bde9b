"""Sends a spool in the background, again after every fault, for as long as the run lasts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trainsanity.connection import ANSWER_SECONDS, Alert
from trainsanity.delivery import Delivery
from trainsanity.errors import DeliveryError, SpoolClosed, log

# Our own: a number from Python's generator would change those that training draws after it.
_chance = random.Random()


@dataclass(frozen=True)
class Patience:
    """How long the sender waits for what; our own judgement.

    Attributes:
        first, most: seconds before the second attempt, and before any later one; doubling between.
        refused: seconds between attempts while the server says no (a key may be put right).
        tell_after: attempts in a row that may fail before the user hears of it.
        last_attempt: seconds that closing spends on a server that has taken nothing lately.
        look: seconds between two looks whether the run is settled.
    """

    first: float = 0.5
    most: float = 60.0
    refused: float = 60.0
    tell_after: int = 3
    last_attempt: float = 2.0
    look: float = 0.1


class Sender(threading.Thread):
    """The thread that sends. It waits for answers and pauses; nobody waits for it but `finish`."""

    def __init__(
        self,
        delivery: Delivery,
        on_news: Callable[[Alert], None],
        patience: Patience = Patience(),
    ) -> None:
        """`on_news` gets every new or changed alert, in this thread, and must not raise."""
        super().__init__(name="trainsanity-send", daemon=True)
        self.delivery = delivery
        self._on_news = on_news
        self._patience = patience
        self._woken = threading.Condition()
        self._has_work = True
        self._deadline: float | None = None  # monotonic time, once the run is closing
        self._closing_since = 0.0  # monotonic time
        self._was_failing = False  # when closing began
        self._has_delivered = False  # at least one packet
        # The last fault, until something is delivered again.
        self.trouble: DeliveryError | None = None
        self._failures = 0  # in a row
        self._failing_since = 0.0  # monotonic time of the first of them
        self._has_told = False  # about this row of failures
        self._done = threading.Event()

    def wake(self) -> None:
        """There is a new packet."""
        with self._woken:
            self._has_work = True
            self._woken.notify_all()

    def finish(self, deadline: float, since: float) -> None:
        """Waits until all is sent and settled, or `deadline` comes.

        Args:
            deadline, since: monotonic time; `since` is when closing began.
        """
        with self._woken:
            # The last packet may have failed for the first time just now.
            self._was_failing = self._failures > 0 and self._failing_since < since
            self._closing_since = time.monotonic()
            self._deadline = deadline
            self._has_work = True
            self._woken.notify_all()
        left = max(0.0, deadline - time.monotonic())
        # A server that has been away for a while shall not hold up the end of training.
        self._done.wait(min(left, self._patience.last_attempt) if self._was_failing else left)

    def run(self) -> None:
        try:
            while not self._done.is_set():
                self._attempt()
        except SpoolClosed:
            log.debug("the run was closed while a packet was on its way")
        finally:
            self.delivery.close()
            self._done.set()

    def _attempt(self) -> None:
        is_last = self._deadline is not None
        try:
            self._send_all()
        except DeliveryError as error:
            pause = self._pause_after(error)
            if is_last and self._gives_up(error, pause):
                self._done.set()
            else:
                self._wait_out(pause, is_last)
            return
        if is_last:
            self._settle()
            self._done.set()
        else:
            self._wait_for_work()

    def _send_all(self) -> None:
        self._has_work = False
        while self.delivery.spool.pending:
            self._tell(self.delivery.send_next(self._seconds()))
            self.trouble, self._failures, self._has_told = None, 0, False
            self._has_delivered = True

    def _settle(self) -> None:
        """All is there: waits until it is judged. A fault costs nothing but this knowledge."""
        try:
            while not self.delivery.settled and self._seconds() > self._patience.look:
                self._done.wait(self._patience.look)
                self.delivery.look_if_settled(self._seconds())
            self._tell(self.delivery.fetch_alerts(self._seconds()))
        except DeliveryError as error:
            log.info("the run is delivered, but its last alerts could not be read: %s", error)

    def _tell(self, news: list[Alert]) -> None:
        for alert in news:
            self._on_news(alert)

    def _seconds(self) -> float:
        """Time for one answer."""
        if self._deadline is None:
            return ANSWER_SECONDS
        return max(0.05, min(ANSWER_SECONDS, self._deadline - time.monotonic()))

    def _pause_after(self, error: DeliveryError) -> float:
        self.trouble = error
        if not self._failures:
            self._failing_since = time.monotonic()
        self._failures += 1
        if not self._has_told and (error.permanent or self._failures >= self._patience.tell_after):
            self._has_told = True
            log.warning(
                "%s. Training goes on; what is measured waits in %s.",
                error,
                self.delivery.spool.path,
            )
        if error.permanent:
            return self._patience.refused
        if error.retry_after is not None:
            return error.retry_after
        longest = min(
            self._patience.most, self._patience.first * 2.0 ** min(self._failures - 1, 20)
        )
        # So that a hundred runs do not come back at once.
        return longest * _chance.uniform(0.5, 1.0)

    def _gives_up(self, error: DeliveryError, pause: float) -> bool:
        again = time.monotonic() + pause
        is_late = self._deadline is not None and again > self._deadline
        is_unknown = not self._has_delivered
        was_long = again - self._closing_since > self._patience.last_attempt
        return self._was_failing or error.permanent or is_late or (is_unknown and was_long)

    def _wait_for_work(self) -> None:
        with self._woken:
            self._woken.wait_for(lambda: self._has_work)

    def _wait_out(self, pause: float, is_last: bool) -> None:
        """A new packet is no reason to ask a faulty server sooner; the end of the run is one."""
        with self._woken:
            self._woken.wait_for(lambda: self._deadline is not None and not is_last, pause)
