"""An alert in words, as the command line shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainsanity.columns import table

NOTES = (("How sure", "certainty"), ("What to do", "suggestion"), ("Rule", "rule"))


def lines(alert: Mapping[str, Any]) -> list[str]:
    """Title, message, witnesses with their numbers, since when, and what to try."""
    witnesses = ((w["name"], _value(w)) for w in alert["witnesses"])
    aligned = table(("", ""), witnesses)[1:]
    return [
        f"{alert['severity'].upper()} ({alert['state']}): {alert['title']}",
        f"    {alert['message']}",
        *(f"    {line}" for line in aligned),
        f"    {_since(alert)}",
        *(f"    {head}: {alert[key]}" for head, key in NOTES if alert.get(key)),
        "",
    ]


def _since(alert: Mapping[str, Any]) -> str:
    times = "once" if alert["count"] == 1 else f"{alert['count']} times"
    return f"Since step {alert['first_step']}, seen {times} up to step {alert['last_step']}."


def _value(witness: Mapping[str, Any]) -> str:
    unit = witness.get("unit", "1")
    return str(witness["value"]) + ("" if unit in ("", "1") else f" {unit}")
