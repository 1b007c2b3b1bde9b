"""The one place where trainsanity catches everything: between the user's training and our
probes.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from trainsanity.interrupts import is_interrupt

log = logging.getLogger("trainsanity")


class Boundary:
    """Calls our code on behalf of the user's training and lets none of its exceptions through. What
    the user's own handler of a signal raises meanwhile goes on to the user.

    What raised is switched off by name for the rest of the run; the traceback goes to the log, and
    to `on_failure`, which makes an audit of it, so that the loss of a probe is visible on the run's
    page.
    """

    def __init__(self, on_failure: Callable[[str, BaseException, str], None]) -> None:
        self._on_failure = on_failure
        self.off: set[str] = set()

    def call(self, part: str, function: Callable[..., Any], *args: Any, default: Any = None) -> Any:
        """`function(*args)`, or `default` where the part is off or fails."""
        if part in self.off:
            return default
        try:
            return function(*args)
        except Exception as error:  # the boundary: monitoring never ends a training run
            if is_interrupt(error):
                raise
            self.off.add(part)
            text = traceback.format_exc()
            log.warning(
                "%s failed and is off for the rest of this run; training is not affected.\n%s",
                part,
                text,
            )
            self._report(part, error, text)
            return default

    def _report(self, part: str, error: BaseException, text: str) -> None:
        try:
            self._on_failure(part, error, text)
        except Exception:  # the boundary again: even the report must not reach training
            log.exception("could not record that %s failed", part)
