"""What every rule promises, checked for all of them.

A new rule needs no test of its own for this: it is found by walking the folder.
"""

import dataclasses
import fnmatch
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Rule, RunHistory, all_rules, rule
from trainsanity.wire import Audit, Block

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence.md"

PROMISED = {
    "masks and metrics": "mask-coverage-mismatch mask-target-misaligned mask-semantics "
    "weighted-naive-disagreement sample-weight-effect metric-recompute-mismatch "
    "epoch-aggregation-mismatch log-key-integrity metric-state-carryover loss-broadcast "
    "output-range-mismatch",
    "optimizer and steps": "lr-effective-mismatch clip-bound-exceeded declared-config-drift "
    "announced-action-mismatch frozen-weights-moved dead-weights step-count-mismatch",
    "structure": "shape-declared-vs-actual structure-mismatch untracked-weights "
    "dtype-policy-mismatch mode-flag-lost state-reset-missing",
    "numbers": "nonfinite-propagation gradient-mismatch path-disagreement nondeterminism",
    "save and reload": "roundtrip-behaviour roundtrip-structure",
    "data": "index-range data-order-repeat input-drift",
    "system": "memory-growth step-time-anomaly retracing console-anomaly run-silent",
    "beyond the study": "weights-moved-outside-update optimizer-state-reset "
    "train-eval-disagreement loss-decomposition-mismatch validation-overlap data-coverage",
    "training health": "vanishing-gradient exploding-gradient dead-units saturated-units "
    "loss-not-decreasing loss-oscillating overfitting input-not-normalized class-imbalance "
    "update-ratio",
}
# Rules that came later; their slugs name the trouble they find.
ADDED = [
    "probe-failed",
    "loss-precision-lost",
    "sparse-update-mismatch",
    "metric-of-one-process",
    "batch-dependent-metric",
]

every_rule = pytest.mark.parametrize("each", all_rules(), ids=lambda r: r.id)


def findings(each: Rule, run: RunHistory) -> list:
    """What a rule finds; nothing where it says that it cannot tell."""
    try:
        return list(each.check(run.view()))
    except NotTestable:
        return []


def subjects(each: Rule, run: RunHistory) -> set[str]:
    return {found.subject for found in findings(each, run)}


def documented() -> tuple[set[str], set[str]]:
    """Signal patterns and audit names of docs/evidence.md; `<metric>` and `[:<output>]` are `*`."""
    signals, audits = set(), set()
    for line in EVIDENCE.read_text().splitlines():
        cells = line.split("|")
        if len(cells) < 3:
            continue
        quantity = ""
        for name in re.findall(r"`([^`]+)`", cells[1]):
            if "/" not in name:
                audits.add(name)
                continue
            name = name if not name.startswith("/") else quantity + name
            quantity = name.rpartition("/")[0]
            signals.add(re.sub(r"<[^>]*>", "*", re.sub(r"\[:<[^>]*>\]", "*", name)))
    return signals, audits


def test_every_promised_rule_exists():
    promised = " ".join(PROMISED.values()).split()
    assert sorted(promised + ADDED) == [each.id for each in all_rules()]


def test_an_unknown_slug_is_answered_with_the_known_ones():
    with pytest.raises(KeyError, match="index-range"):
        rule("no-such-rule")


@every_rule
def test_the_id_names_the_file(each):
    assert type(each).__module__ == "trainsanity.rules." + each.id.replace("-", "_")


@every_rule
def test_the_docstring_explains(each):
    parts = each.explanation()
    for heading in ("summary", "compares", "why", "try", "source"):
        assert len(parts.get(heading, "")) >= 8, f"{each.id} does not say: {heading}"
    assert "\n" not in parts["summary"]


@every_rule
def test_needs_are_promised_by_some_probe(each):
    signals, audits = documented()
    for need in each.needs:
        if need.startswith("audit:"):
            assert need.removeprefix("audit:") in audits
        else:
            matches = [k for k in signals if fnmatch.fnmatch(need, k) or fnmatch.fnmatch(k, need)]
            assert matches, f"{need} is not in docs/evidence.md"


@every_rule
def test_thresholds_have_a_default_and_say_their_unit(each):
    for field in dataclasses.fields(each):
        assert field.default is not dataclasses.MISSING, field.name
    for threshold in each.thresholds():
        assert len(threshold.meaning) >= 5, f"{each.id}: {threshold.name} has no comment"


@every_rule
def test_fires_on_its_own_example(each):
    found = findings(each, each.fires_on())
    assert found
    for one in found:
        assert len(one.witnesses) >= 2
        for witness in one.witnesses:
            assert witness.name
            assert witness.unit, f"{witness.name} has no unit"
        for words in (one.subject, one.title, one.message, one.suggestion, one.certainty):
            assert words.strip()
        assert len(one.title) <= 90
        assert one.count >= 1
        assert one.first_step <= one.last_step


@every_rule
def test_heuristics_only_advise(each):
    if each.heuristic:
        severities = {f.severity or each.severity for f in findings(each, each.fires_on())}
        assert severities == {"advice"}
        assert each.severity == "advice"


@every_rule
def test_a_subject_is_told_once(each):
    found = [one.subject for one in findings(each, each.fires_on())]
    assert len(found) == len(set(found))


@every_rule
def test_stays_quiet_on_the_near_miss(each):
    assert not findings(each, each.quiet_on())


@every_rule
def test_says_the_same_when_asked_twice(each):
    run = each.fires_on()
    assert findings(each, run) == findings(each, run)


@every_rule
def test_findings_are_plain_data(each):
    for one in findings(each, each.fires_on()):
        json.dumps(dataclasses.asdict(one))


@every_rule
def test_knows_nothing_of_an_empty_run(each):
    assert not findings(each, RunHistory())


@every_rule
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_does_not_depend_on_packets(each, data):
    """Cut anywhere, judged after each packet: the same subjects as all at once."""
    for example in (each.fires_on, each.quiet_on):
        whole = example()
        last = max([0, *(int(s) for _, steps, _ in rows_of(whole) for s in steps)])
        cuts = data.draw(st.sets(st.integers(0, last + 1), max_size=5))
        found = set()
        run = RunHistory(whole.facts)
        for begin, end in packets(cuts):
            feed(run, whole, begin, end)
            found |= subjects(each, run)
            run.mark_judged()
        expected = subjects(each, whole)
        assert found >= expected if each.heals else found == expected


@every_rule
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_takes_nan_and_infinity_for_data(each, value):
    for example in (each.fires_on, each.quiet_on):
        for share in (1, 2, 3):
            whole = example()
            run = RunHistory(whole.facts)
            for names, steps, values in rows_of(whole):
                spoilt = values.copy()
                spoilt[:, ::share] = value
                run.append(Block(names, steps, spoilt))
            for audit in audits_of(whole):
                run.add_audit(audit)
            findings(each, run)


@every_rule
@pytest.mark.parametrize("rest", [None, "words", -1, 1.5, [], {}])
def test_takes_audits_that_lack_or_garble_a_fact(each, rest):
    """Evidence comes from another process, perhaps of another version."""
    for example in (each.fires_on, each.quiet_on):
        whole = example()
        for spoilt in range(sum(len(list(leaves(a.facts))) for a in audits_of(whole))):
            run = RunHistory(whole.facts)
            for names, steps, values in rows_of(whole):
                run.append(Block(names, steps, values))
            seen = 0
            for audit in audits_of(whole):
                size = len(list(leaves(audit.facts)))
                facts = replaced(audit.facts, spoilt - seen, rest)
                run.add_audit(Audit(audit.name, audit.step, facts))
                seen += size
            findings(each, run)


def test_rules_stand_alone():
    """The server and every command line import them; neither wants a backend for that."""
    code = (
        "import sys\n"
        "from trainsanity.rules import all_rules\n"
        "all_rules()\n"
        "heavy = {'keras', 'tensorflow', 'jax', 'torch', 'trainsanity_server', 'fastapi'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


# Histories taken apart


def rows_of(run: RunHistory):
    """(names, steps, values) of every group of signals."""
    for names, group in run._groups.items():
        steps, values = group.kept()
        yield names, steps, values


def audits_of(run: RunHistory) -> list[Audit]:
    return [audit for kept in run._audits.values() for audit in kept]


def packets(cuts):
    edges = [-1, *sorted(cuts), math.inf]
    return itertools.pairwise(edges)


def feed(run: RunHistory, whole: RunHistory, begin: float, end: float) -> None:
    """Everything of the steps in (begin, end]: rows first, then the audits made of them."""
    for names, steps, values in rows_of(whole):
        inside = (steps > begin) & (steps <= end)
        if inside.any():
            run.append(Block(names, steps[inside], np.ascontiguousarray(values[:, inside])))
    for audit in audits_of(whole):
        if begin < audit.step <= end:
            run.add_audit(audit)


def leaves(facts):
    """Every value that is not a map or list of others, and every empty one."""
    if isinstance(facts, dict) and facts:
        for value in facts.values():
            yield from leaves(value)
    elif isinstance(facts, list) and facts:
        for value in facts:
            yield from leaves(value)
    else:
        yield facts


def replaced(facts, at, rest):
    """A copy of the facts in which leaf number `at` is another value."""
    numbers = iter(range(10**6))

    def copy(value):
        if isinstance(value, dict) and value:
            return {key: copy(inner) for key, inner in value.items()}
        if isinstance(value, list) and value:
            return [copy(inner) for inner in value]
        return rest if next(numbers) == at else value

    return copy(facts)
