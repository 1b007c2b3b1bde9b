"""The watchman: silence is noticed in time, and taken back; mutes end."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from cast import healthy
from stage import Stage

from trainsanity.rules.run_silent import RunSilent
from trainsanity_server.live import LiveHub
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.services.watchman import GRACE_SECONDS, LONGEST_SLEEP_SECONDS, Watchman
from trainsanity_server.storage import runs
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import alert_id, new_id
from trainsanity_server.storage.models import AlertRow, RunRow

START = 1_800_000_000.0
BROKEN = 60.0 + GRACE_SECONDS  # after the last report of a run that promised to report in 60 s


@dataclass
class Scene:
    """A server that stores runs, and its watchman; time passes where a test says so."""

    database: Database
    now: float = START
    judged: int = 0
    hub: LiveHub = field(default_factory=LiveHub)

    def __post_init__(self) -> None:
        self.alerts = Alerts(self.database, self.hub, lambda: self.now)
        self.watchman = self.another_server()

    def another_server(self) -> Watchman:
        return Watchman(self.database, self.alerts, self.hub, lambda: self.now, self._judge)

    def _judge(self) -> None:
        self.judged += 1

    def run_reports(self, run_id: str | None = None, *, silent_after: float = 60.0) -> str:
        """What the arrival of a packet leaves behind."""
        row = RunRow(
            id=run_id or new_id(),
            state="running",
            started_at=START,
            last_seen_at=self.now,
            silent_after=silent_after,
            alarm_after=self.now + silent_after,
        )
        self.database.write(lambda session: session.merge(row))
        return row.id

    def run_ends(self, run_id: str) -> None:
        row = RunRow(id=run_id, state="finished", alarm_after=None)
        self.database.write(lambda session: session.merge(row))

    def state(self, run_id: str) -> str:
        with self.database.read() as session:
            return runs.get(session, run_id).state

    def muted_alert(self, run_id: str, until: float) -> str:
        row = AlertRow(
            id=alert_id(run_id, "memory-growth", "process"),
            run_id=run_id,
            rule="memory-growth",
            subject="process",
            severity="warning",
            state="muted",
            title="Memory grows",
            message="",
            witnesses=[],
            opened_at=START,
            updated_at=START,
            muted_until=until,
        )
        self.database.write(lambda session: session.add(row))
        return row.id

    def alert_state(self, id_: str) -> str:
        with self.database.read() as session:
            return session.get(AlertRow, id_).state


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def test_a_run_that_keeps_its_promise_is_running(scene: Scene):
    run = scene.run_reports()
    scene.now += BROKEN - 0.1
    scene.watchman.step()
    assert scene.state(run) == "running"
    assert scene.judged == 0


def test_a_run_that_breaks_its_promise_is_silent_and_judged(scene: Scene):
    run = scene.run_reports()
    scene.now += BROKEN
    scene.watchman.step()
    assert scene.state(run) == "silent"
    assert scene.judged == 1
    with scene.database.read() as session:
        assert runs.get(session, run).judge_due_at <= scene.now


def test_each_run_is_held_to_its_own_promise(scene: Scene):
    hasty, slow = scene.run_reports(silent_after=10), scene.run_reports(silent_after=600)
    scene.now += 100
    scene.watchman.step()
    assert (scene.state(hasty), scene.state(slow)) == ("silent", "running")


def test_a_silent_run_is_told_of_once(scene: Scene):
    scene.run_reports()
    scene.now += BROKEN
    for _ in range(3):
        scene.watchman.step()
    assert scene.judged == 1


def test_a_run_that_reports_again_is_watched_again(scene: Scene):
    run = scene.run_reports()
    scene.now += 600
    scene.watchman.step()
    scene.run_reports(run)
    scene.watchman.step()
    assert scene.state(run) == "running"
    scene.now += BROKEN
    scene.watchman.step()
    assert scene.state(run) == "silent"
    assert scene.judged == 2


def test_a_run_that_has_ended_is_never_silent(scene: Scene):
    run = scene.run_reports()
    scene.run_ends(run)
    scene.now += 10_000
    scene.watchman.step()
    assert scene.state(run) == "finished"


def test_the_watchman_sleeps_until_the_next_promise_runs_out(scene: Scene):
    scene.run_reports(silent_after=60.0)
    scene.now += BROKEN - 3.0
    assert scene.watchman.step() == pytest.approx(3.0)


def test_the_watchman_looks_now_and_then_for_runs_that_others_take_in(scene: Scene):
    assert scene.watchman.step() == LONGEST_SLEEP_SECONDS
    scene.run_reports(silent_after=600.0)
    assert scene.watchman.step() == LONGEST_SLEEP_SECONDS


def test_two_servers_tell_of_a_silent_run_once(scene: Scene):
    scene.run_reports()
    other = scene.another_server()
    scene.now += BROKEN
    scene.watchman.step()
    other.step()
    assert scene.judged == 1


def test_a_server_that_was_away_does_not_blame_the_runs(scene: Scene):
    run = scene.run_reports()
    scene.now += 3600
    restarted = scene.another_server()
    restarted.start()
    restarted.stop()
    assert scene.state(run) == "running"
    scene.now += BROKEN
    scene.watchman.step()
    assert scene.state(run) == "silent"


def test_silence_becomes_an_alert_that_heals_when_the_run_speaks_again(stage: Stage):
    """The whole way: packets, watchman, judge and the rule itself."""
    stage.rules = Rulebook([RunSilent()])
    stage.judge = stage.another_judge()
    watchman = Watchman(
        stage.database, stage.alerts, stage.hub, stage.clock, on_silent=stage.judge.wake
    )
    run, packets = healthy(ended=False)
    stage.play(packets)
    assert stage.runs.alerts(run.id) == []
    stage.clock.advance(packets[-1].silent_after + GRACE_SECONDS)
    watchman.step()
    stage.judge_all()
    (alert,) = stage.runs.alerts(run.id)
    assert (alert.rule, alert.state) == ("run-silent", "open")
    assert stage.runs.get(run.id).state == "silent"
    stage.play([run.packet(loss__reported=[1.0])])
    (alert,) = stage.runs.alerts(run.id)
    assert (alert.rule, alert.state) == ("run-silent", "resolved")
    assert stage.runs.get(run.id).state == "running"


def test_a_mute_ends_when_it_was_said_to_end(scene: Scene):
    run = scene.run_reports(silent_after=1e6)
    alert = scene.muted_alert(run, until=START + 2.0)
    assert scene.watchman.step() == pytest.approx(2.0)
    assert scene.alert_state(alert) == "muted"
    scene.now += 2.0
    scene.watchman.step()
    assert scene.alert_state(alert) == "open"
