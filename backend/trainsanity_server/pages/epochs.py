"""The table of epochs, from the audits `epoch`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainsanity_server.pages.formats import figure
from trainsanity_server.services.runs import AuditFact

SHOWN = 40  # epochs on the page, the newest
# Relative; less than the last of four digits can tell, and more than float32 sums are apart.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Cell:
    """A reported value, and the recomputed one where it is another."""

    shown: str
    recomputed: str


@dataclass(frozen=True)
class Epoch:
    number: str
    steps: str
    seconds: float | None
    cells: Sequence[Cell]


@dataclass(frozen=True)
class EpochTable:
    """Attributes:
    keys: what Keras reported, in its order.
    rows: the newest first.
    left_out: how many older epochs are not among them.
    """

    keys: Sequence[str]
    rows: Sequence[Epoch]
    left_out: int


def epoch_table(audits: Sequence[AuditFact], *, left_out: int = 0) -> EpochTable:
    """Args:
    left_out: how many epochs are not even among the audits.
    """
    facts = [audit.facts for audit in audits if audit.name == "epoch"]
    shown = facts[::-1][:SHOWN]
    keys = list(dict.fromkeys(str(key) for epoch in shown for key in _map(epoch, "reported")))
    rows = [_epoch(epoch, keys) for epoch in shown]
    return EpochTable(keys, rows, left_out + len(facts) - len(shown))


def _epoch(facts: Mapping[str, Any], keys: Sequence[str]) -> Epoch:
    reported, recomputed = _map(facts, "reported"), _map(facts, "recomputed")
    seconds = facts.get("seconds")
    return Epoch(
        number=_as_keras_prints(facts.get("epoch")),
        steps=f"{figure(facts.get('first_step'))} to {figure(facts.get('last_step'))}",
        seconds=_finite(seconds),
        cells=[_cell(reported.get(key), recomputed.get(key)) for key in keys],
    )


def _as_keras_prints(epoch: Any) -> str:
    """Keras counts epochs from 0 in its callbacks, and from 1 for people."""
    return figure(epoch + 1) if isinstance(epoch, int) else figure(epoch)


def _cell(reported: Any, recomputed: Any) -> Cell:
    shown, other = figure(reported), figure(recomputed)
    # Two values a rounding apart may still be written differently: 0.1234 and 0.1235.
    is_same = recomputed is None or other == shown or _is_rounding(reported, recomputed)
    return Cell(shown, "" if is_same else other)


def _is_rounding(one: Any, other: Any) -> bool:
    are_numbers = all(isinstance(value, (int, float)) for value in (one, other))
    return are_numbers and math.isclose(one, other, rel_tol=ROUNDING)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _map(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}
