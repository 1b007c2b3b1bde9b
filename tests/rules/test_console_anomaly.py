"""What the terminal shows."""

import pytest

from trainsanity.rules import Severity, history
from trainsanity.rules.console_anomaly import ConsoleAnomaly

EPOCH = {"lines": 3, "bytes": 2000, "batches": 10, "headers": [], "error_lines": [], "warnings": []}


def found(*epochs):
    rows = [("console", 10 * n, EPOCH | {"epoch": n} | e) for n, e in enumerate(epochs)]
    return list(ConsoleAnomaly().check(history(audits=rows).view()))


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"bytes": 90_000}, "amount of output"),
        ({"headers": [1, 1]}, "epoch headers"),
        ({"headers": [7]}, "epoch headers"),
        ({"error_lines": [{"kind": "CycleError", "origin": "keras", "count": 4}]}, "error lines"),
        (
            {"warnings": [{"category": "W", "package": "keras", "text": "t", "user_code": False}]},
            "W of keras",
        ),
    ],
    ids=str,
)
def test_each_oddity_is_advice_about_its_own_subject(change, subject):
    (alert,) = found(change)
    assert alert.subject == subject
    assert ConsoleAnomaly.severity is Severity.ADVICE
    assert ConsoleAnomaly.heuristic


@pytest.mark.parametrize(
    "change",
    [
        {"headers": [1]},
        {"warnings": [{"category": "W", "package": "mine", "text": "t", "user_code": True}]},
        {"bytes": 90_000, "batches": 0},
    ],
    ids=str,
)
def test_near_misses_stay_quiet(change):
    assert not found(change)


def test_one_epoch_of_many_lines_stands_out():
    (alert,) = found({}, {}, {}, {"lines": 400})
    assert alert.witnesses[0].value == 3
    assert not found({"lines": 400}, {"lines": 390}, {"lines": 410}, {"lines": 400})


def test_a_bar_wider_than_any_terminal_is_advice():
    (alert,) = found({"longest_run": {"sign": "=", "length": 4000}})
    assert alert.subject == "progress bar"
    assert [w.value for w in alert.witnesses] == [500, 4000]
    assert not found({"longest_run": {"sign": "=", "length": 120}})


def test_lines_that_cut_through_the_bar_are_advice():
    (alert,) = found({"interruptions": {"lines": 4, "origin": "train.py:3"}})
    assert "train.py:3" in alert.message
    assert not found({"interruptions": {"lines": 1, "origin": "train.py:3"}})
