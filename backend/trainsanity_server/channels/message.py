"""What a channel is given to send: the same for every channel, without markup."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainsanity.rules import Witness

SEVERITIES = ("critical", "warning", "advice")  # worst first
# A unit and the next smaller one, with their lengths in seconds.
UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


class Event(enum.StrEnum):
    """What happened. A message tells of one kind of event only."""

    OPENED = "opened"
    RESOLVED = "resolved"
    TEST = "test"


@dataclass(frozen=True)
class News:
    """One alert that changed its state, as it was at that moment.

    Times are seconds since the epoch.
    """

    alert_id: str
    rule: str
    subject: str
    severity: str
    title: str
    message: str
    run_id: str
    run_name: str
    project: str
    url: str  # the alert on its run's page
    witnesses: tuple[Witness, ...] = ()
    suggestion: str = ""
    certainty: str = ""
    first_step: int = 0
    last_step: int = 0
    count: int = 1
    opened_at: float = 0.0
    resolved_at: float | None = None


@dataclass(frozen=True)
class Message:
    """What people read at once: one alert, or a group of them in the same state.

    Attributes:
        event: the same for all news of the message.
        news: none for a test.
        url: where all of it can be seen.
        hidden: alerts that changed too, but were muted.
    """

    event: Event
    url: str
    news: tuple[News, ...] = field(default=())
    hidden: int = 0

    @property
    def worst_first(self) -> list[News]:
        return sorted(self.news, key=lambda n: (_rank(n.severity), n.opened_at))


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def distinct_values(witnesses: Sequence[Witness]) -> list[str]:
    """The witnesses' values with units, in as many digits as it takes to tell them apart.

    Two numbers that contradict each other must not look the same because both were rounded.
    """
    numbers = {float(w.value) for w in witnesses if not isinstance(w.value, str)}
    digits = 4
    while digits < 17 and len({_number(n, digits) for n in numbers}) < len(numbers):
        digits += 1
    return [_value(w, digits) for w in witnesses]


def _value(witness: Witness, digits: int) -> str:
    if isinstance(witness.value, str):
        return witness.value
    number = _number(float(witness.value), digits)
    return number if witness.unit in ("", "1") else f"{number} {witness.unit}"


def _number(value: float, digits: int) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: `1 h 5 min`, `12 s`."""
    whole = max(0, round(seconds))
    for name, size, smaller, small in UNITS:
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
