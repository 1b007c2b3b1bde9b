"""Every rule looks at every run while evidence comes in, once and always."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cast import Training, diverging, healthy, lying, silent
from rules_for_tests import RULES, rulebook
from sqlalchemy import event, select
from stage import Clock, Stage, eventually

from trainsanity.rules import RunHistory, rule
from trainsanity.wire import Audit
from trainsanity_server.live import Event
from trainsanity_server.services import judge as judge_module
from trainsanity_server.services.rulebook import Opinion, Rulebook, changed_verdicts
from trainsanity_server.services.runs import Alert
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import RunRow


def only_alert(stage: Stage, run: Training) -> Alert:
    (alert,) = stage.runs.alerts(run.id)
    return alert


def verdicts(stage: Stage, run: Training) -> dict[str, tuple[str, str]]:
    with stage.database.read() as session:
        from trainsanity_server.storage import alerts

        return {v.rule: (v.verdict, v.reason) for v in alerts.verdicts(session, run.id)}


def test_a_healthy_run_is_left_alone(stage):
    run, packets = healthy()
    stage.play(packets)
    assert stage.runs.alerts(run.id) == []
    assert stage.runs.get(run.id).alert_counts == {"critical": 0, "warning": 0, "advice": 0}
    assert stage.runs.get(run.id).settled


def test_a_contradiction_opens_an_alert_with_both_numbers(stage):
    run, packets = lying(2)
    stage.play(packets)
    alert = only_alert(stage, run)
    assert (alert.rule, alert.severity, alert.state) == ("accuracy-differs", "critical", "open")
    assert (alert.first_step, alert.last_step, alert.count) == (26, 50, 25)
    assert [w["name"] for w in alert.witnesses] == ["accuracy/reported", "accuracy/recomputed"]
    shown, true = (w["value"] for w in alert.witnesses)
    assert shown - true == pytest.approx(0.3)
    assert stage.runs.get(run.id).alert_counts == {"critical": 1, "warning": 0, "advice": 0}


def test_a_recurrence_is_counted_and_opens_nothing(stage):
    run, packets = lying(5)
    stage.play(packets)
    alert = only_alert(stage, run)
    assert (alert.first_step, alert.last_step, alert.count) == (26, 125, 100)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_how_packets_are_taken_together_makes_no_difference(stage, at_once):
    run, packets = lying(5)
    for i in range(0, len(packets), at_once):
        stage.send_all(packets[i : i + at_once])
        stage.judge_all()
    assert only_alert(stage, run).count == 100


def test_a_rule_that_says_the_same_again_changes_nothing(stage):
    run, packets = diverging()
    stage.play(packets)
    before = only_alert(stage, run)
    cursor = stage.send(packets[-1]).cursor
    stage.send(run.packet(accuracy__reported=[0.5], accuracy__recomputed=[0.5]))
    stage.judge_all()
    assert only_alert(stage, run) == before
    assert stage.send(packets[-1]).cursor == cursor


def test_an_infinite_witness_stays_what_it_is(stage):
    run, packets = diverging()
    stage.play(packets)
    assert np.isnan(only_alert(stage, run).witnesses[0]["value"])


def test_each_rule_says_what_it_thinks(stage):
    run, packets = lying()
    stage.play(packets)
    said = verdicts(stage, run)
    assert said["accuracy-differs"] == ("alert", "accuracy is not what it seems")
    assert said["loss-not-finite"] == ("ok", "")
    assert said["needs-audit"] == ("not_testable", "the run carries no audit nowhere")
    assert said["broken"] == (
        "not_testable",
        "the rule failed: ZeroDivisionError: division by zero",
    )


def test_a_broken_rule_leaves_its_traceback_in_the_log(stage, caplog):
    _, packets = healthy(1)
    stage.play(packets)
    record = next(r for r in caplog.records if "rule broken failed" in r.message)
    assert record.exc_info is not None


def test_an_alert_verdict_stays_when_the_trouble_passes(stage):
    run, packets = lying(2, ended=False)
    stage.play(packets)
    stage.play([run.packet(accuracy__reported=[0.5], accuracy__recomputed=[0.5])])
    assert verdicts(stage, run)["accuracy-differs"][0] == "alert"


def test_a_rule_speaks_as_soon_as_it_can(stage):
    run = Training()
    stage.play([run.packet()])
    assert verdicts(stage, run)["loss-not-finite"][0] == "not_testable"
    stage.play([run.packet(loss__reported=[1.0])])
    assert verdicts(stage, run)["loss-not-finite"] == ("ok", "")


@pytest.mark.parametrize(
    ("before", "now", "is_news"),
    [
        ("not_testable", "ok", True),
        ("ok", "not_testable", False),
        ("ok", "alert", True),
        ("alert", "ok", False),
        ("alert", "not_testable", False),
    ],
)
def test_the_strongest_verdict_stays(before, now, is_news):
    """A rule that could look once has looked, and what it found once was there."""
    opinion = Opinion(verdicts={"r": (now, "")})
    assert bool(changed_verdicts({"r": (before, "")}, opinion, rulebook())) is is_news


def test_every_real_rule_has_a_row_even_before_it_spoke(stage):
    run, packets = healthy(1)
    stage.send(packets[0])
    shown = {v.rule: v for v in stage.runs.verdicts(run.id)}
    assert "mask-coverage-mismatch" in shown
    assert shown["mask-coverage-mismatch"].verdict == "not_testable"
    assert shown["mask-coverage-mismatch"].reason


def test_rules_that_the_run_ignores_do_not_speak(stage):
    run = Training(expect={"ignore": ["accuracy-differs"]})
    stage.play([run.packet(accuracy__reported=[0.9], accuracy__recomputed=[0.1])])
    assert stage.runs.alerts(run.id) == []
    verdict, reason = verdicts(stage, run)["accuracy-differs"]
    assert verdict == "not_testable"
    assert "ignore" in reason


def test_heuristics_can_be_switched_off():
    book = Rulebook(heuristics=False)
    assert not any(r.heuristic for r in book.rules)
    opinion = book.ask(RunHistory().view())
    assert opinion.verdicts["vanishing-gradient"] == (
        "not_testable",
        "heuristic rules are switched off",
    )
    assert rule("vanishing-gradient").heuristic


# Settled


def test_a_run_is_settled_when_the_rules_have_seen_its_end(stage):
    run, packets = healthy()
    assert not stage.send_all(packets).settled
    stage.judge_all()
    assert stage.runs.get(run.id).settled
    assert stage.send(packets[-1]).settled


def test_a_running_run_is_not_settled(stage):
    run, packets = healthy(ended=False)
    stage.play(packets)
    assert not stage.runs.get(run.id).settled


def test_rules_see_the_end_together_with_the_last_packet(stage, monkeypatch):
    """A run may end while the judge is far behind."""
    monkeypatch.setattr(judge_module, "PACKETS_AT_ONCE", 2)
    run, packets = healthy(9)
    stage.send_all(packets)
    stage.judge_all()
    assert stage.runs.get(run.id).settled
    assert stage.runs.alerts(run.id) == []


def test_a_packet_between_reading_and_noting_is_not_lost(stage):
    run, packets = healthy(2)
    stage.send(packets[0])
    with stage.database.read() as session:
        seen = run_rows.get(session, run.id)
    assert stage.judge._claim(seen)
    stage.send_all(packets[1:])
    stage.judge.judge(seen)
    assert not stage.runs.get(run.id).settled
    stage.judge_all()
    assert stage.runs.get(run.id).settled


# Restarts and other judges


def test_a_new_judge_goes_on_where_the_old_one_stopped(stage):
    run, packets = lying(6)
    stage.play(packets[:3])
    stage.judge.stop()
    stage.judge = stage.another_judge()
    stage.play(packets[3:])
    assert only_alert(stage, run).count == 125


def test_a_new_judge_remembers_what_is_in_chunks(stage):
    """Totals of the whole run must not begin anew."""
    run, packets = diverging()
    stage.play(packets)
    assert only_alert(stage, run).count == 15
    stage.judge.stop()
    stage.judge = stage.another_judge()
    stage.play([run.packet(loss__reported=[float("nan")] * 3)])
    assert only_alert(stage, run).count == 18


def test_a_crash_before_the_commit_loses_nothing(stage):
    run, packets = lying(3)
    stage.send_all(packets)

    @event.listens_for(stage.database.engine, "commit")
    def crash(connection: object) -> None:
        raise KeyboardInterrupt

    stage.clock.advance(1.0)
    with pytest.raises(KeyboardInterrupt):
        stage.judge.step()
    event.remove(stage.database.engine, "commit", crash)
    assert stage.runs.alerts(run.id) == []
    stage.clock.advance(60.0)  # the lease of the dead judge ends
    stage.judge = stage.another_judge()
    stage.judge_all()
    assert only_alert(stage, run).count == 50
    assert stage.runs.get(run.id).settled


def test_what_a_killed_server_had_in_hand_is_judged_at_once_after_a_restart(sqlite_url, clock):
    """On SQLite one process serves; on PostgreSQL another machine may have the run in hand."""
    run, packets = lying(4)
    with contextlib.closing(Database(sqlite_url)) as database, Stage(database, clock) as stage:
        stage.play(packets[:1])
        stage.send_all(packets[1:])  # and the process is killed
        restarted = stage.another_judge()
        restarted.start()
        eventually(lambda: stage.runs.get(run.id).settled)
        restarted.stop()
        assert only_alert(stage, run).count == 75


def test_two_judges_share_the_work(stage):
    """What one has in hand, the other leaves alone."""
    run, packets = lying(4)
    other = stage.another_judge()
    stage.send(packets[0])
    stage.judge_all()
    stage.send(packets[1])
    other.step()
    assert stage.runs.alerts(run.id) == []
    stage.judge_all()
    assert only_alert(stage, run).count == 25


def test_a_judge_that_lost_the_run_stores_nothing(stage):
    run, packets = lying(3)
    stage.send_all(packets[:2])
    with stage.database.read() as session:
        seen = run_rows.get(session, run.id)
    assert stage.judge._claim(seen)
    stage.clock.advance(60.0)
    other = stage.another_judge()
    other.step()
    assert only_alert(stage, run).count == 25
    stage.judge.judge(seen)
    assert only_alert(stage, run).count == 25
    stage.send_all(packets[2:])
    stage.clock.advance(1.0)
    other.step()
    assert only_alert(stage, run).count == 50


def test_a_stopped_judge_lets_go_at_once(stage):
    _, packets = lying(2)
    stage.send(packets[0])
    stage.judge_all()
    stage.judge.stop()
    stage.send_all(packets[1:])
    other = stage.another_judge()
    stage.clock.advance(1.0)
    other.step()
    assert len(stage.runs.alerts(packets[0].run_id)) == 1


def test_few_histories_in_memory_are_enough(stage):
    """A run that was forgotten is read again."""
    runs = [lying(4) for _ in range(3)]
    stage.judge = judge_module.Judge(
        stage.database,
        stage.points,
        stage.alerts,
        stage.hub,
        stage.clock,
        rulebook=stage.rules,
        histories=1,
    )
    for i in range(5):
        for _, packets in runs:
            stage.send(packets[i])
        stage.judge_all()
    assert [only_alert(stage, run).count for run, _ in runs] == [75, 75, 75]


def test_a_run_that_goes_on_is_judged_a_few_times_a_second(stage):
    _, packets = healthy(2)
    stage.send(packets[0])
    stage.judge_all()
    stage.clock.advance(0.05)
    stage.send(packets[1])
    assert stage.judge.step() == pytest.approx(0.15)
    with stage.database.read() as session:
        assert session.scalar(select(RunRow.judged_seq)) == 1


# Healing


def test_a_silent_run_heals_when_it_reports_again(stage):
    run, packets = silent()
    stage.play(packets)
    stage.clock.advance(31.0)
    stage.database.write(lambda s: run_rows.mark_silent(s, run.id, stage.clock()))
    stage.judge_all()
    assert only_alert(stage, run).state == "open"
    assert verdicts(stage, run)["silent"][0] == "alert"
    stage.play([run.packet(loss__reported=[0.1])])
    alert = only_alert(stage, run)
    assert (alert.state, alert.state_reason) == ("resolved", "no longer found")
    assert verdicts(stage, run)["silent"][0] == "ok"
    assert stage.runs.get(run.id).state == "running"


def test_a_run_that_falls_silent_while_it_is_judged_is_judged_again(stage):
    run, packets = silent()
    stage.send_all(packets)
    with stage.database.read() as session:
        seen = run_rows.get(session, run.id)
    assert stage.judge._claim(seen)
    stage.clock.advance(31.0)
    stage.database.write(lambda s: run_rows.mark_silent(s, run.id, stage.clock()))
    stage.judge.judge(seen)
    stage.judge_all()
    assert only_alert(stage, run).rule == "silent"


# What people see


def test_the_list_has_a_small_curve(stage):
    _, packets = healthy(8)
    stage.play(packets)
    spark = stage.runs.page().runs[0].sparkline
    assert spark["signal"] == "loss/reported"
    assert len(spark["values"]) == 48
    assert spark["values"] == sorted(spark["values"], reverse=True)


def test_watchers_are_told_of_alerts(stage):
    run, packets = lying(2)
    stage.send_all(packets)
    stage.hub.published.clear()
    stage.judge_all()
    assert Event("alerts", run.id) in stage.hub.published
    assert Event("run", run.id) in stage.hub.published


def test_a_damaged_packet_is_told_and_the_rest_judged(stage):
    from sqlalchemy import update

    from trainsanity_server.storage.models import PacketRow

    run, packets = lying(3)
    stage.send_all(packets)
    damaged = update(PacketRow).where(PacketRow.seq == 1).values(body=b"rubbish")
    stage.database.write(lambda s: s.execute(damaged))
    stage.judge_all()
    assert "packet 1 cannot be read" in stage.runs.get(run.id).damage
    assert only_alert(stage, run).count == 25
    assert stage.runs.get(run.id).settled


def test_the_thread_judges_by_itself(database):
    run, packets = lying(3)
    with Stage(database, Clock()) as stage:
        stage.judge.start()
        stage.send_all(packets)
        stage.judge.wake()
        eventually(lambda: stage.runs.get(run.id).settled)
        stage.judge.stop()
        assert only_alert(stage, run).count == 50
        assert not stage.judge.is_alive


def test_audits_reach_the_rules(stage):
    seen = []

    class Reads(type(RULES[0])):
        id = "reads"

        def check(self, run):
            seen.extend(a.facts["n"] for a in run.new_audits("epoch"))
            return []

    run = Training()
    with Stage(stage.database, stage.clock, rules=Rulebook([Reads()])) as stage:
        stage.play([run.packet(audits=[Audit("epoch", i, {"n": i})]) for i in range(3)])
        stage.judge.stop()
        stage.judge = stage.another_judge()
        stage.play([run.packet(audits=[Audit("epoch", 3, {"n": 3})])])
    assert seen == [0, 1, 2, 3]
