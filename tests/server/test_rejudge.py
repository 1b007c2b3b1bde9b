"""Judging a run of the past again, with rules that know more or less than those of its time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cast import healthy, lying
from rules_for_tests import AccuracyDiffers, LossNotFinite
from sqlalchemy import select
from stage import Stage

from trainsanity.rules import Rule
from trainsanity_server.errors import ConflictError, NotFoundError
from trainsanity_server.services.rejudge import Change, Difference, HeldError, Rejudge
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.storage.ids import new_id
from trainsanity_server.storage.models import OutboxRow

LEASE_SECONDS = 60.0  # more than a judge holds a run after it was judged
KEY = "accuracy-differs: accuracy"


class Milder(AccuracyDiffers):
    """As if the rule had learnt that such a difference is none."""

    def check(self, run):
        list(super().check(run))
        return []


def judged(stage: Stage, packets: Sequence, rules: Sequence[Rule]) -> None:
    """Lets the run be judged as it comes in, by the rules of its time."""
    stage.rules = Rulebook(rules)
    stage.judge = stage.another_judge()
    stage.play(packets)
    stage.clock.advance(LEASE_SECONDS)


def again(stage: Stage, run_id: str, rules: Sequence[Rule]) -> Difference:
    alerts = type(stage.alerts)(stage.database, stage.hub, stage.clock)
    book = Rulebook(rules)
    return Rejudge(stage.database, stage.points, alerts, stage.clock, book).again(run_id)


def test_a_new_rule_speaks_about_an_old_run(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [LossNotFinite()])
    difference = again(stage, run.id, [LossNotFinite(), AccuracyDiffers()])
    assert difference.verdicts == [Change("accuracy-differs", "", "alert")]
    assert difference.alerts == [Change(KEY, "", "open")]
    (alert,) = stage.runs.alerts(run.id)
    assert (alert.first_step, alert.last_step, alert.count) == (26, 100, 75)
    assert stage.runs.get(run.id).alert_counts["critical"] == 1


def test_the_same_rules_find_nothing_different(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [AccuracyDiffers(), LossNotFinite()])
    before = stage.runs.alerts(run.id)
    assert not again(stage, run.id, [AccuracyDiffers(), LossNotFinite()])
    (alert,) = stage.runs.alerts(run.id)
    assert (alert.count, alert.opened_at) == (before[0].count, before[0].opened_at)


def test_a_rule_that_has_become_milder_takes_its_alert_back(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [AccuracyDiffers()])
    difference = again(stage, run.id, [Milder()])
    assert difference.verdicts == [Change("accuracy-differs", "alert", "ok")]
    assert difference.alerts == [Change(KEY, "open", "resolved")]
    assert stage.runs.alerts(run.id)[0].state_reason == "no longer found"


def test_what_a_rule_that_is_gone_has_found_stays(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [AccuracyDiffers()])
    assert again(stage, run.id, [LossNotFinite()]).alerts == []
    assert stage.runs.alerts(run.id)[0].state == "open"


def test_what_somebody_has_resolved_stays_resolved(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [AccuracyDiffers()])
    stage.alerts.resolve(stage.runs.alerts(run.id)[0].id, reason="on purpose")
    assert again(stage, run.id, [AccuracyDiffers()]).alerts == []
    assert stage.runs.alerts(run.id)[0].state == "resolved"


def test_nobody_is_called_for_what_is_long_past(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [LossNotFinite()])
    again(stage, run.id, [AccuracyDiffers()])
    with stage.database.read() as session:
        assert session.scalars(select(OutboxRow)).all() == []


def test_a_run_that_goes_on_is_left_to_its_judge(stage: Stage):
    run, packets = healthy(ended=False)
    judged(stage, packets, [AccuracyDiffers()])
    with pytest.raises(ConflictError, match="is running"):
        again(stage, run.id, [AccuracyDiffers()])


def test_a_run_in_a_servers_hand_is_waited_for(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [AccuracyDiffers()])
    stage.clock.advance(-LEASE_SECONDS)
    with pytest.raises(HeldError, match="try again"):
        again(stage, run.id, [AccuracyDiffers()])


def test_a_run_that_was_judged_again_is_free_at_once(stage: Stage):
    run, packets = lying()
    judged(stage, packets, [AccuracyDiffers()])
    again(stage, run.id, [AccuracyDiffers()])
    assert not again(stage, run.id, [AccuracyDiffers()])


def test_an_unknown_run_is_told(stage: Stage):
    with pytest.raises(NotFoundError):
        again(stage, new_id(), [AccuracyDiffers()])
