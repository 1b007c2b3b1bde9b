"""Which signals are drawn together: the witnesses of one quantity, on one scale."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainsanity_server.pages.formats import count, with_unit
from trainsanity_server.pages.witness_words import IN_ALL, witness_words

# Witnesses that are told under a quantity's name but live on another scale than its others.
APART = {
    "nonfinite": "NaN and infinite numbers",
    "elements": "elements in the unreduced loss",
    "expected_elements": "elements in the unreduced loss",
    "out_of_range": "share outside the table",
    "live_variables": "variables alive",
}
# Quantities in the order in which they are shown; whatever else is a metric, and comes first.
ORDER = (
    ("mask", "sample_weight"),
    ("learning_rate", "optimizer"),
    ("gradient", "update", "weights"),
    ("embedding", "labels", "inputs", "outputs", "batch"),
    ("time", "memory", "traces"),
)


MOST_TOGETHER = 24  # curves in one chart: more cannot be told apart, nor asked for at once


class SignalFacts(Protocol):
    """What is known of a signal without reading it; `min` and `max` are over finite values."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def first_step(self) -> int: ...
    @property
    def last_step(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def last(self) -> float: ...
    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...


@dataclass(frozen=True)
class Chart:
    """One picture of several witnesses.

    Attributes:
        id: stays the same for the same title and section; fit for an `id` in HTML.
        summary: the picture in words.
    """

    id: str
    title: str
    unit: str
    signals: Sequence[SignalFacts]

    @property
    def names(self) -> list[str]:
        return [signal.name for signal in self.signals]

    @property
    def labels(self) -> list[str]:
        """What tells its signals apart: witnesses of one quantity, or quantities."""
        parts = [name.rpartition("/") for name in self.names]
        if len({quantity for quantity, _, _ in parts}) == 1:
            return [witness for _, _, witness in parts]
        if len({witness for _, _, witness in parts}) == 1:
            return [quantity for quantity, _, _ in parts]
        return self.names

    @property
    def words(self) -> list[str]:
        """What each signal is, for whoever has never seen its name; empty where nobody knows."""
        return [witness_words(name) for name in self.names]

    @property
    def summary(self) -> str:
        return " ".join(_in_words(signal) for signal in self.signals)


def charts(signals: Iterable[SignalFacts]) -> list[Chart]:
    """Charts of a run, in the order in which they are shown."""
    groups: dict[tuple[str, str], list[SignalFacts]] = {}
    for signal in signals:
        groups.setdefault((_title(signal.name), signal.unit), []).append(signal)
    return [
        each
        for (title, unit), members in sorted(groups.items(), key=lambda group: _place(*group))
        for each in _parted(title, unit, sorted(members, key=_claim_first))
    ]


def _parted(title: str, unit: str, signals: Sequence[SignalFacts]) -> Iterator[Chart]:
    """One chart, or several where one could not be read."""
    if len(signals) <= MOST_TOGETHER:
        yield Chart(_id("chart", title, unit), title, unit, signals)
        return
    for begin in range(0, len(signals), MOST_TOGETHER):
        members = signals[begin : begin + MOST_TOGETHER]
        part = f"{title}, {begin + 1} to {begin + len(members)} of {len(signals)}"
        yield Chart(_id("chart", title, unit, str(begin)), part, unit, members)


def chart(signals: Sequence[SignalFacts], title: str) -> Chart:
    """One chart of just these."""
    return Chart(_id("chart", title), title, signals[0].unit if signals else "1", signals)


def _title(name: str) -> str:
    quantity, _, witness = name.removesuffix(IN_ALL).rpartition("/")
    apart = APART.get(witness)
    if apart is None:
        return quantity or name
    return apart if witness == "nonfinite" else f"{quantity}: {apart}"


def _place(key: tuple[str, str], members: Sequence[SignalFacts]) -> tuple[int, bool, bool, str]:
    """Metrics first, and the loss first of all; validation after training."""
    title = key[0]
    head = members[0].name.partition("/")[0].partition(":")[0]
    section = next((i for i, quantities in enumerate(ORDER, 1) if head in quantities), 0)
    return section, title != "loss", title.startswith(("val_", "NaN")), title


_CLAIMS = ("reported", "declared", "input_coverage", "step")


def _claim_first(signal: SignalFacts) -> tuple[bool, str]:
    return signal.name.rpartition("/")[2] not in _CLAIMS, signal.name


def _in_words(signal: SignalFacts) -> str:
    where = f"{with_unit(signal.last, signal.unit)} at step {signal.last_step:,}"
    if math.isnan(signal.min):
        return f"{signal.name}: {where}; {count(signal.count, 'point')}, none of them finite."
    between = (
        f"between {with_unit(signal.min, signal.unit)} and {with_unit(signal.max, signal.unit)}"
    )
    return f"{signal.name}: {where}; {count(signal.count, 'point')} {between}."


def _id(*parts: str) -> str:
    return f"{parts[0]}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:10]}"
