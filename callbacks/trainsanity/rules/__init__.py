"""All rules, found by walking this folder: one file is one rule, or arithmetic that rules share."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from trainsanity.rules.history import RunFacts, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness

__all__ = [
    "Finding",
    "NotTestable",
    "Rule",
    "RunFacts",
    "RunHistory",
    "RunView",
    "Severity",
    "Witness",
    "all_rules",
    "history",
    "rule",
]


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """One instance of every rule with its default thresholds, sorted by slug."""
    found: list[Rule] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found.extend(
            value()
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Rule)
            and value is not Rule
            and value.__module__ == module.__name__
        )
    return tuple(sorted(found, key=lambda r: r.id))


def rule(slug: str) -> Rule:
    """The rule of this slug.

    Raises:
        KeyError: there is none; the text lists near ones.
    """
    by_slug = {r.id: r for r in all_rules()}
    if slug not in by_slug:
        raise KeyError(f"no rule is called {slug!r}. Known rules: {', '.join(by_slug)}")
    return by_slug[slug]
