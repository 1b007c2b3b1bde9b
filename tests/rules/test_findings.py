"""Findings of one subject in several windows of a run."""

from __future__ import annotations

import pytest

from trainsanity.rules import Finding, NotTestable, all_rules, history
from trainsanity.rules.sample_weight_effect import SampleWeightEffect
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


def test_what_is_found_stands_where_the_rest_cannot_be_tested_yet():
    """The audit came before the first signals, and is shown as new only once."""
    facts = {"loss": 1.5, "again": 1.5, "other_weights": 1.5, "rows": 8}
    run = history(audits=[("weights_used", 1, facts)])
    (finding,) = SampleWeightEffect().findings(run.view())
    assert finding.subject == "loss"
    with pytest.raises(NotTestable):
        SampleWeightEffect().findings(history().view())
