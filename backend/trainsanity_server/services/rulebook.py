"""Asks all rules about one run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trainsanity.rules import NotTestable, Rule, RunView, all_rules
from trainsanity_server.services.alerts import Found

MAX_SUBJECTS = 100  # alerts that one rule may open in one run
STRENGTH = {"alert": 2, "ok": 1, "not_testable": 0}

log = logging.getLogger(__name__)

Verdicts = dict[str, tuple[str, str]]  # by rule: verdict and reason


@dataclass
class Opinion:
    """What the rules say of what is new.

    Attributes:
        spoke: slugs of those that could be asked.
    """

    found: list[Found] = field(default_factory=list)
    verdicts: Verdicts = field(default_factory=dict)
    spoke: set[str] = field(default_factory=set)


class Rulebook:
    """The rules that take part.

    Args:
        heuristics: whether rules that only advise about training health do.
    """

    def __init__(self, rules: Sequence[Rule] | None = None, *, heuristics: bool = True) -> None:
        every = all_rules() if rules is None else rules
        self.rules = [rule for rule in every if heuristics or not rule.heuristic]
        self._off = [rule for rule in every if rule not in self.rules]

    def heals(self, slug: str) -> bool:
        return any(rule.heals for rule in self.rules if rule.id == slug)

    def ask(self, run: RunView) -> Opinion:
        ignored = run.expects("ignore", ())
        opinion = Opinion()
        for rule in self._off:
            opinion.verdicts[rule.id] = ("not_testable", "heuristic rules are switched off")
        for rule in self.rules:
            if isinstance(ignored, Collection) and rule.id in ignored:
                reason = "the run declares Expect(ignore=...) for this rule"
                opinion.verdicts[rule.id] = ("not_testable", reason)
            else:
                _ask(rule, run, opinion)
        return opinion


def _ask(rule: Rule, run: RunView, opinion: Opinion) -> None:
    try:
        findings = rule.findings(run)
    except NotTestable as answer:
        opinion.verdicts[rule.id] = ("not_testable", str(answer))
        return
    except Exception as error:  # one broken rule must not silence the others
        log.exception("rule %s failed on run %s", rule.id, run.facts.id)
        reason = f"the rule failed: {type(error).__name__}: {error}"
        opinion.verdicts[rule.id] = ("not_testable", reason)
        return
    opinion.spoke.add(rule.id)
    opinion.found += [Found(rule, finding) for finding in findings[:MAX_SUBJECTS]]
    opinion.verdicts[rule.id] = ("ok", "") if not findings else ("alert", _titles(findings))


def _titles(findings: Sequence[object]) -> str:
    titles = [str(getattr(finding, "title", "")) for finding in findings]
    shown = "; ".join(titles[:3])
    return shown if len(titles) <= 3 else f"{shown}; and {len(titles) - 3} more"


def changed_verdicts(
    before: Mapping[str, tuple[str, str]], opinion: Opinion, book: Rulebook
) -> Verdicts:
    """Verdicts that differ: an alert stays one, and *ok* is more than *not testable*."""
    changed: Verdicts = {}
    for slug, now in opinion.verdicts.items():
        old = before.get(slug)
        if old == now:
            continue
        is_weaker = old is not None and STRENGTH[now[0]] < STRENGTH[old[0]]
        has_healed = slug in opinion.spoke and book.heals(slug)
        if not is_weaker or has_healed:
            changed[slug] = now
    return changed
