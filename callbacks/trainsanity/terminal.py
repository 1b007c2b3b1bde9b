"""What a run says in the terminal of the training process."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

from trainsanity.errors import log
from trainsanity.settings import Settings
from trainsanity.stream import CloseReport

Alert = Mapping[str, Any]


class Terminal:
    """Prints one line when a run begins, one when it ends, and each new alert once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._said: set[str] = set()
        if not any(isinstance(handler, LastResort) for handler in log.handlers):
            log.addHandler(LastResort(logging.WARNING))

    def begin(self, run_url: str) -> None:
        if self._settings.verbose:
            where = run_url or f"offline, {self._settings.spool_dir}"
            _say(f"trainsanity: watching this run: {where}")

    def alert(self, alert: Alert) -> None:
        """Each alert once, however often it changes."""
        if alert["id"] not in self._said:
            self._said.add(alert["id"])
            _say(_text(alert))

    def end(self, report: CloseReport, alerts: list[dict[str, Any]], run_url: str) -> None:
        if not self._settings.verbose:
            return
        alive = [a for a in alerts if a.get("state") in ("open", "acknowledged")]
        counts = ", ".join(
            f"{n} {severity}"
            for severity in ("critical", "warning", "advice")
            if (n := sum(a["severity"] == severity for a in alive))
        )
        if report.settled:
            _say(f"trainsanity: {counts or 'no alerts'}: {run_url}")
        else:
            _say(f"trainsanity: {counts + ' so far. ' if counts else ''}{report.hint}")


class LastResort(logging.Handler):
    """Where the program has not set up logging: Python would show warnings without their origin."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            _say(f"trainsanity: {self.format(record)}")


def _say(text: str) -> None:
    """Where it can: a closed stream, a full disk or a terminal that is gone must not end training,
    nor a print that this one interrupts.
    """
    if sys.stderr is None:  # `print` would take standard output, where data may flow
        return
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(text, file=sys.stderr, flush=True)


def _text(alert: Alert) -> str:
    lines = [
        f"trainsanity [{alert['severity'].upper()}] {alert['title']}",
        f"  {alert['message']}",
    ]
    if alert.get("suggestion"):
        lines.append(f"  What to do: {alert['suggestion']}")
    return "\n".join(lines)
