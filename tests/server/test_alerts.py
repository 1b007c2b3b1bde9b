"""The life of an alert."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cast import Training, lying
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rules_for_tests import AccuracyDiffers, Silent
from sqlalchemy import event, select
from stage import Clock, Stage

from trainsanity.rules import Finding, Severity, Witness
from trainsanity_server.errors import ConflictError, MalformedError, NotFoundError
from trainsanity_server.services.alerts import Alerts, Found
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import new_id
from trainsanity_server.storage.models import AlertRow, OutboxRow, RunRow

DAY = 86400.0


def finding(first_step: int = 1, last_step: int = 5, **changes: object) -> Finding:
    return replace(
        Finding(
            subject="accuracy",
            title="accuracy is not what it seems",
            message=f"at step {last_step}",
            witnesses=(Witness("reported", 0.9), Witness("true", 0.5)),
            suggestion="look at the mask",
            first_step=first_step,
            last_step=last_step,
            count=last_step - first_step + 1,
        ),
        **changes,
    )


class Scene:
    """One run, and whoever finds something about it."""

    def __init__(self, database: Database) -> None:
        self.stage = Stage(database, Clock(), channels=["slack"])
        with self.stage:
            training = Training()
            self.stage.send(training.packet())
        self.run_id = training.id

    def find(self, *findings: Finding, rule: type = AccuracyDiffers, healed: bool = False) -> bool:
        def work(session):
            run = run_rows.locked(session, self.run_id)
            found = [Found(rule(), f) for f in findings]
            return self.alerts.record(session, run, found, healed=lambda row: healed)

        return self.stage.database.write(work)

    @property
    def alerts(self) -> Alerts:
        return self.stage.alerts

    @property
    def clock(self) -> Clock:
        return self.stage.clock

    @property
    def alert(self):
        (alert,) = self.stage.runs.alerts(self.run_id)
        return alert

    @property
    def news(self) -> list[str]:
        with self.stage.database.read() as session:
            return list(session.scalars(select(OutboxRow.kind).order_by(OutboxRow.id)))

    @property
    def history(self) -> list[tuple[str, str, str]]:
        found = self.stage.runs.transitions(self.alert.id)
        return [(t.from_state, t.to_state, t.reason) for t in found]

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.stage.runs.get(self.run_id).alert_counts)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def test_it_opens_once_and_people_hear_of_it(scene):
    assert scene.find(finding())
    assert scene.alert.state == "open"
    assert scene.history == [("", "open", "found")]
    assert scene.news == ["opened"]
    assert scene.counts == {"critical": 1, "warning": 0, "advice": 0}


def test_recurrences_are_counted_and_nobody_is_told_again(scene):
    scene.find(finding(1, 5))
    scene.find(finding(6, 10))
    assert (scene.alert.count, scene.alert.first_step, scene.alert.last_step) == (10, 1, 10)
    assert scene.alert.message == "at step 10"
    assert scene.news == ["opened"]


def test_steps_that_were_counted_are_not_counted_again(scene):
    """Some rules speak of the whole run each time."""
    scene.find(finding(1, 5))
    scene.find(finding(1, 10))
    assert scene.alert.count == 10


def test_a_rule_may_say_since_when_and_count_what_is_new(scene):
    scene.find(finding(1, 5))
    scene.find(finding(1, 10, count=5))
    assert scene.alert.count == 10


def test_an_audit_that_is_found_wrong_again_counts_again(scene):
    scene.find(finding(10, 10))
    scene.find(finding(10, 10, message="still"))
    assert scene.alert.count == 1
    scene.find(finding(20, 20))
    assert scene.alert.count == 2


def test_the_same_words_again_are_no_news(scene):
    scene.find(finding())
    assert not scene.find(finding())


def test_two_subjects_are_two_alerts(scene):
    scene.find(finding(), finding(subject="loss"))
    assert len(scene.stage.runs.alerts(scene.run_id)) == 2


def test_what_is_known_more_exactly_is_told_in_the_place_of_what_was_told_before(scene):
    scene.find(finding(subject="output"))
    scene.find(finding(subject="add", replaces=("output",)))
    states = {a.subject: (a.state, a.state_reason) for a in scene.stage.runs.alerts(scene.run_id)}
    assert states == {"output": ("resolved", "known more exactly: add"), "add": ("open", "found")}
    assert scene.counts == {"critical": 1, "warning": 0, "advice": 0}
    assert scene.news == ["opened", "opened"]
    assert not scene.find(finding(subject="add", replaces=("output",)))


def test_a_finding_may_be_milder_than_its_rule_but_not_harsher(scene):
    scene.find(finding(severity=Severity.ADVICE))
    assert scene.alert.severity == "advice"
    scene.find(finding(subject="loss", severity=Severity.CRITICAL), rule=Silent)
    assert {a.severity for a in scene.stage.runs.alerts(scene.run_id)} == {"advice", "warning"}


def test_people_hear_when_it_becomes_worse(scene):
    scene.find(finding(severity=Severity.WARNING))
    scene.find(finding(6, 9))
    assert scene.alert.severity == "critical"
    assert scene.news == ["opened", "opened"]
    scene.find(finding(10, 12, severity=Severity.WARNING))
    assert scene.alert.severity == "critical"


def test_advice_does_not_reach_channels(scene):
    scene.find(finding(severity=Severity.ADVICE))
    assert scene.news == []


def test_somebody_looks_after_it(scene):
    scene.find(finding())
    alert = scene.alerts.acknowledge(scene.alert.id, reason="mine")
    assert (alert.state, alert.state_reason) == ("acknowledged", "mine")
    assert scene.counts["critical"] == 1
    assert scene.alerts.acknowledge(scene.alert.id) == alert
    scene.find(finding(6, 9))
    assert scene.alert.state == "acknowledged"


def test_muted_it_is_counted_and_nobody_hears_of_it(scene):
    scene.find(finding())
    scene.alerts.mute(scene.alert.id, reason="known")
    scene.find(finding(6, 9))
    scene.find(finding(10, 12))
    assert (scene.alert.state, scene.alert.hidden) == ("muted", 2)
    assert scene.news == ["opened"]
    assert scene.counts["critical"] == 0


def test_where_nobody_gives_a_reason_the_page_says_no_more_than_that(scene):
    """The page sets it behind the state: `Acknowledged: no reason given`."""
    scene.find(finding())
    assert scene.alerts.acknowledge(scene.alert.id).state_reason == "no reason given"


def test_every_mute_has_an_end(scene):
    scene.find(finding())
    assert scene.alerts.mute(scene.alert.id).muted_until == scene.clock() + DAY
    assert scene.alerts.mute(scene.alert.id, until=scene.clock() + 60).muted_until == (
        scene.clock() + 60
    )


@pytest.mark.parametrize("seconds", [0.0, -5.0, 400 * DAY])
def test_a_mute_without_a_sensible_end_is_refused(scene, seconds):
    scene.find(finding())
    with pytest.raises(MalformedError, match="every mute has an end"):
        scene.alerts.mute(scene.alert.id, until=scene.clock() + seconds)


def test_at_its_end_people_hear_what_was_hidden(scene):
    scene.find(finding())
    scene.alerts.mute(scene.alert.id)
    scene.find(finding(6, 9))
    scene.clock.advance(DAY - 1)
    assert scene.alerts.end_mutes() == 0
    scene.clock.advance(1)
    assert scene.alerts.end_mutes() == 1
    assert scene.alert.state == "open"
    assert scene.history[-1] == ("muted", "open", "the mute ended; meanwhile it was found once")
    assert scene.news == ["opened", "opened"]
    assert (scene.alert.hidden, scene.alert.muted_until) == (0, None)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_mute_that_somebody_else_ends_first_is_left_alone(scene):
    """Where several servers share a database, another may act while this one waits for the run."""
    scene.find(finding())
    scene.alerts.mute(scene.alert.id)
    scene.clock.advance(DAY)
    others = [lambda: scene.alerts.resolve(scene.alert.id, reason="fixed")]

    @event.listens_for(scene.stage.database.engine, "before_cursor_execute")
    def before(connection, cursor, statement, *_):
        if "FOR UPDATE" in statement and others:
            others.pop()()

    assert scene.alerts.end_mutes() == 0
    assert scene.history[-1] == ("muted", "resolved", "fixed")


def test_nobody_hears_of_a_deleted_run_when_its_mute_ends(scene):
    scene.find(finding())
    scene.alerts.mute(scene.alert.id)
    scene.find(finding(6, 9))
    alert = scene.alert.id
    scene.stage.database.write(lambda s: _delete(run_rows.locked(s, scene.run_id)))
    scene.clock.advance(DAY)
    scene.alerts.end_mutes()
    assert scene.news == ["opened"]
    with pytest.raises(ConflictError, match="has just been deleted"):
        scene.alerts.resolve(alert)


def _delete(run: RunRow) -> None:
    run.deleted_at = 1.0


def test_a_mute_that_hid_nothing_ends_quietly(scene):
    scene.find(finding())
    scene.alerts.mute(scene.alert.id)
    scene.alerts.unmute(scene.alert.id)
    assert scene.alert.state == "open"
    assert scene.news == ["opened"]


def test_resolved_it_is_over_and_people_hear_of_it(scene):
    scene.find(finding())
    scene.clock.advance(60)
    alert = scene.alerts.resolve(scene.alert.id, reason="fixed")
    assert (alert.state, alert.resolved_at) == ("resolved", scene.clock())
    assert scene.news == ["opened", "resolved"]
    assert scene.counts["critical"] == 0


def test_found_again_it_opens_again(scene):
    scene.find(finding())
    scene.alerts.resolve(scene.alert.id)
    scene.clock.advance(60)
    scene.find(finding(6, 9))
    assert (scene.alert.state, scene.alert.resolved_at) == ("open", None)
    assert scene.alert.opened_at == scene.clock()
    assert scene.history[-1] == ("resolved", "open", "found again")
    assert scene.news == ["opened", "resolved", "opened"]


def test_what_was_said_before_it_was_resolved_does_not_open_it(scene):
    scene.find(finding())
    scene.alerts.resolve(scene.alert.id)
    scene.find(finding())
    assert scene.alert.state == "resolved"


def test_what_heals_is_resolved(scene):
    scene.find(finding())
    scene.find(healed=True)
    assert scene.alert.state == "resolved"
    assert scene.news == ["opened", "resolved"]


def test_what_heals_while_muted_ends_quietly(scene):
    scene.find(finding())
    scene.alerts.mute(scene.alert.id)
    scene.find(healed=True)
    assert scene.alert.state == "resolved"
    assert scene.news == ["opened"]


def test_what_cannot_be_done_is_said_so(scene):
    scene.find(finding())
    scene.alerts.resolve(scene.alert.id)
    with pytest.raises(ConflictError, match="resolved cannot be changed by acknowledge"):
        scene.alerts.acknowledge(scene.alert.id)
    with pytest.raises(ConflictError):
        scene.alerts.unmute(scene.alert.id)
    with pytest.raises(NotFoundError):
        scene.alerts.resolve(new_id())
    with pytest.raises(MalformedError, match="Received: 2000"):
        scene.alerts.resolve(scene.alert.id, reason="x" * 2000)


def test_a_client_hears_of_changes_since_its_cursor(database):
    run, packets = lying(3, ended=False)
    with Stage(database) as stage:
        stage.play(packets)
        first = stage.send(run.packet())
        assert [a.rule for a in first.alerts] == ["accuracy-differs"]
        assert stage.send(run.packet(), first.cursor).alerts == []
        stage.alerts.resolve(first.alerts[0].id)
        second = stage.send(run.packet(), first.cursor)
        assert [a.state for a in second.alerts] == ["resolved"]
        assert second.cursor > first.cursor


class AlertLife(RuleBasedStateMachine):
    """Whatever happens in whatever order, what is stored fits together."""

    folder: Path
    migrated_file: Path

    @initialize()
    def begin(self) -> None:
        path = shutil.copy(self.migrated_file, self.folder / f"{new_id()}.db")
        self.database = Database(f"sqlite:///{path}")
        self.scene = Scene(self.database)
        self.step = 0
        self.exists = False

    def teardown(self) -> None:
        self.database.close()

    @rule(severity=st.sampled_from(list(Severity)))
    def find(self, severity: Severity) -> None:
        self.scene.find(finding(self.step + 1, self.step + 2, severity=severity))
        self.step += 2
        self.exists = True

    @precondition(lambda self: self.exists)
    @rule(action=st.sampled_from(["acknowledge", "mute", "unmute", "resolve"]))
    def act(self, action: str) -> None:
        with contextlib.suppress(ConflictError):
            getattr(self.scene.alerts, action)(self.scene.alert.id)

    @rule(seconds=st.sampled_from([1.0, DAY]))
    def wait(self, seconds: float) -> None:
        self.scene.clock.advance(seconds)
        self.scene.alerts.end_mutes()

    @precondition(lambda self: self.exists)
    @rule()
    def heal(self) -> None:
        self.scene.find(healed=True)

    @invariant()
    def it_fits_together(self) -> None:
        if not self.exists:
            return
        alert, history = self.scene.alert, self.scene.history
        assert history[0][0] == ""
        assert all(a[1] == b[0] for a, b in itertools.pairwise(history))
        assert history[-1][1] == alert.state
        assert (alert.resolved_at is not None) == (alert.state == "resolved")
        assert (alert.muted_until is not None) == (alert.state == "muted")
        assert alert.count == self.step
        is_open = alert.state in ("open", "acknowledged")
        assert sum(self.scene.counts.values()) == int(is_open)
        with self.database.read() as session:
            run = run_rows.get(session, self.scene.run_id)
            assert run.alert_cursor == max(session.scalars(select(AlertRow.cursor)))

    @invariant()
    def people_hear_of_ends_only_after_beginnings(self) -> None:
        if self.exists:
            news = self.scene.news
            assert news[:1] in ([], ["opened"])
            assert "resolved" not in [a for a, b in itertools.pairwise(news) if a == b]


def test_any_life(tmp_path, migrated_file):
    class Life(AlertLife):
        pass

    Life.folder, Life.migrated_file = tmp_path, migrated_file

    few = settings(max_examples=20, stateful_step_count=15, deadline=None)
    run_state_machine_as_test(Life, settings=few)
