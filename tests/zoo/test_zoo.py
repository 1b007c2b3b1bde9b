"""Every bug of the study is caught by the rule that is meant to; its healthy twin is left alone."""

from __future__ import annotations

import keras
import pytest
from tests.zoo import page
from tests.zoo.case import Case, all_cases, run
from tests.zoo.study import BUGS, STUDY, UNREACHED

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the zoo is made for TensorFlow"
)


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_rule_speaks_and_the_twin_is_left_alone(case: Case):
    outcome = run(case)
    assert not outcome.twin
    if not case.caught:
        return
    assert outcome.found, f"{case.rule} did not speak; others did: {outcome.others}"
    finding = outcome.found[0]
    shown, true = finding.witnesses[:2]
    if not case.in_words:
        assert all(isinstance(each.value, (int, float)) for each in (shown, true))
        assert shown.value != true.value, "numbers that agree prove nothing"
    assert finding.certainty
    assert finding.message
    assert finding.suggestion


def test_every_case_names_what_the_finding_is_about():
    assert all(case.subject.strip("*?") for case in all_cases())


def test_every_case_is_of_the_study_or_founded_the_product():
    assert {bug for case in all_cases() for bug in case.bugs} <= set(BUGS)


def test_no_bug_has_two_cases():
    named = [bug for case in all_cases() for bug in case.bugs]
    assert len(named) == len(set(named))


def test_page_and_readme_say_what_was_measured_of_these_cases():
    """No case is trained for it: what the page holds is put together anew from what it says."""
    told = page.PAGE.read_text(encoding="utf-8")
    table = page.rows(page.measured_on(told))
    stale = "run `make zoo ARGS='--write FILE ...'` for the files that changed"
    assert told == page.page(table), stale
    readme = page.README.read_text(encoding="utf-8")
    assert page.summary(table)[:40] in readme
    assert readme == page.with_summary(readme, table), stale
    assert {row["bug"] for row in table if row["case"]} == set(page.measured_on(told)), stale


def test_the_page_says_as_caught_what_its_case_does():
    told = page.measured_on(page.PAGE.read_text(encoding="utf-8"))
    wrong = [c.name for c in all_cases() for bug in c.bugs if told[bug].caught != c.caught]
    assert not wrong
    assert all(measured.twin_silent for measured in told.values())


def test_what_is_not_caught_says_why():
    assert all(case.not_reachable for case in all_cases() if not case.caught)
    with_case = {bug for case in all_cases() for bug in case.bugs}
    assert {bug.id for bug in STUDY} - with_case == set(UNREACHED)


def test_the_study_has_77_bugs():
    counts = [sum(bug.catchable == word for bug in STUDY) for word in ("yes", "partly", "no")]
    assert counts == [49, 26, 2]


def test_failures_of_the_installed_keras_are_listed():
    listed = (page.ROOT / "docs" / "live-silent-bugs.md").read_text(encoding="utf-8")
    assert not [c.name for c in all_cases() if c.live and f"`{c.name}`" not in listed]
