"""A rule in words, as the command line and other programs show it."""

from __future__ import annotations

from typing import Any

import click

from trainsanity.rules import Rule


def facts(rule: Rule) -> dict[str, Any]:
    """Everything that can be said of a rule, as plain data."""
    return {
        "id": rule.id,
        "severity": rule.severity,
        "heuristic": rule.heuristic,
        "needs": list(rule.needs),
        **rule.explanation(),
        "thresholds": vars(rule),
    }


def explanation(rule: Rule) -> list[str]:
    """The rule explained, line by line."""
    parts = rule.explanation()
    text = [f"{rule.id} ({rule.severity})", "", *_wrapped(parts.pop("summary")), ""]
    for heading, words in parts.items():
        text += [*_wrapped(f"{heading.capitalize()}: {words}"), ""]
    text += [*_wrapped(f"Needs: {', '.join(rule.needs)}")]
    if thresholds := rule.thresholds():
        text += ["", "Thresholds:"]
        text += [f"  {each.name} = {each.value}  {each.meaning}".rstrip() for each in thresholds]
    return text


def _wrapped(text: str) -> list[str]:
    return click.wrap_text(text, width=88).splitlines()
