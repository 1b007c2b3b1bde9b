"""Findings of one subject in several windows of a run."""

from __future__ import annotations

from trainsanity.rules import Finding, all_rules
from trainsanity.spooled import Judgement

RULE = next(iter(all_rules()))


def found(subject: str, first: int, last: int, count: int, *, replaces: tuple[str, ...] = ()):
    return Finding(subject, f"since {first}", "", (), "", first, last, count, replaces=replaces)


def test_what_is_found_again_is_one_finding_with_the_later_words():
    judgement = Judgement()
    judgement.add(RULE, found("accuracy", 3, 10, 8))
    judgement.add(RULE, found("accuracy", 11, 20, 10))
    (finding,) = judgement.of(RULE.id)
    assert (finding.title, finding.first_step, finding.last_step) == ("since 11", 3, 20)
    assert finding.count == 18


def test_what_counts_the_whole_run_is_not_counted_twice():
    again = found("accuracy", 3, 20, 18).after(found("accuracy", 3, 10, 8))
    assert again.count == 18


def test_what_is_known_more_exactly_takes_the_place_of_what_was_told_before():
    judgement = Judgement()
    judgement.add(RULE, found("a mask", 1, 1, 1))
    judgement.add(RULE, found("the mask of layer add", 1, 4, 4, replaces=("a mask",)))
    assert [finding.subject for _, finding in judgement.findings] == ["the mask of layer add"]
