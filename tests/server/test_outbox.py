"""The outbox: everything is told, in order, whatever happens on the way.

Slack is a real HTTP server here, the database is real, and time passes only where a test says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import httpx2
import pytest
from slack_receiver import PATIENT, Reply, SlackReceiver
from sqlalchemy import select, update

from trainsanity_server.channels.slack import SlackChannel
from trainsanity_server.errors import ConflictError
from trainsanity_server.services.channels import Channels
from trainsanity_server.services.outbox import GIVE_UP_SECONDS, LEASE_SECONDS, Outbox
from trainsanity_server.storage import outbox as rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import alert_id, new_id
from trainsanity_server.storage.models import AlertRow, OutboxRow, RunRow

START = 1_800_000_000.0


class Killed(BaseException):
    """The process ends here, without a chance to tidy up."""


@dataclass
class Scene:
    """A server with one run, and Slack."""

    database: Database
    slack: SlackReceiver
    now: float = START
    clock: Callable[[], float] | None = None  # a real one, where threads run
    timeout: httpx2.Timeout = field(default_factory=lambda: PATIENT)
    run: RunRow = field(default_factory=lambda: RunRow(id=new_id(), name="tagger", project="nlp"))

    def __post_init__(self) -> None:
        self.started: list[Outbox] = []
        self.outbox = self.another_server()

    def another_server(self, url: str | None = None) -> Outbox:
        """A server process on the same database, as after a restart or beside the first."""
        channel = SlackChannel(
            url or self.slack.url,
            allowed_hosts=("127.0.0.1",),
            timeout=self.timeout,
            clock=self.time,
        )
        self.channels = Channels(
            self.database, [channel], base_url="http://ts.example", clock=self.time
        )
        self.channels.prepare()
        outbox = Outbox(
            self.database,
            self.channels,
            base_url="http://ts.example",
            clock=self.time,
            jitter=lambda: 1.0,
        )
        self.started.append(outbox)
        return outbox

    def time(self) -> float:
        return self.clock() if self.clock else self.now

    def close(self) -> None:
        for outbox in self.started:
            outbox.stop()

    def _alert(self, number: int) -> AlertRow:
        return AlertRow(
            id=alert_id(self.run.id, "mask-coverage-mismatch", f"layer_{number}"),
            run_id=self.run.id,
            rule="mask-coverage-mismatch",
            subject=f"layer_{number}",
            severity="critical",
            state="open",
            title=f"Mask lost at layer_{number}",
            message="Half of what counts is padding.",
            witnesses=[
                {"name": "mask/input_coverage", "value": 0.5, "unit": "1"},
                {"name": "mask/metric_coverage", "value": float("nan"), "unit": "1"},
            ],
            suggestion="Use Add().",
            certainty="They differ by 0.5.",
            first_step=1,
            last_step=9,
            count=9,
            opened_at=START,
            updated_at=self.now,
        )

    def opens(self, number: int = 0) -> str:
        def work(session) -> str:
            alert = session.merge(self._alert(number))
            rows.add(session, self.channels.names, "opened", alert, self.run, self.time())
            return alert.id

        return self.database.write(work)

    def resolves(self, number: int = 0) -> None:
        def work(session) -> None:
            alert = session.merge(self._alert(number))
            alert.state, alert.resolved_at = "resolved", self.now
            rows.add(session, self.channels.names, "resolved", alert, self.run, self.time())

        self.database.write(work)

    def mutes(self, id_: str) -> None:
        muted = update(AlertRow).where(AlertRow.id == id_).values(state="muted")
        self.database.write(lambda session: session.execute(muted))

    def passes(self, seconds: float) -> None:
        """Time goes by while the outbox does its work whenever it is due."""
        end = self.now + seconds
        for _ in range(10_000):
            wait = self.outbox.step()
            assert wait >= 0
            if wait and self.now + wait > end:
                self.now = end
                return
            self.now += wait
        raise AssertionError("the outbox never came to rest")

    def states(self) -> dict[str, int]:
        with self.database.read() as session:
            return rows.counts(session).get("slack", {})

    @property
    def status(self):
        return self.channels.list()[0]

    def told(self) -> list[str]:
        """The headlines of what Slack took."""
        return [body["text"] for body in self.slack.accepted]


@pytest.fixture
def slack() -> Iterator[SlackReceiver]:
    with SlackReceiver() as receiver:
        yield receiver


@pytest.fixture
def scene(database: Database, slack: SlackReceiver, monkeypatch) -> Iterator[Scene]:
    # Days pass in these tests.
    monkeypatch.setattr("trainsanity_server.services.outbox.IDLE_SECONDS", 1800.0)
    scene = Scene(database, slack)
    yield scene
    scene.close()


def opened(number: int = 0) -> str:
    return f"[CRITICAL] Mask lost at layer_{number} – tagger (project nlp)"


def resolved(number: int = 0) -> str:
    return f"[RESOLVED] Mask lost at layer_{number} – tagger (project nlp)"


# On a good day


def test_an_alert_is_told_soon(scene: Scene):
    scene.opens()
    scene.passes(2)
    assert scene.told() == [opened()]
    assert scene.states() == {"sent": 1}


def test_the_message_links_to_the_alert_on_its_runs_page(scene: Scene):
    id_ = scene.opens()
    scene.passes(2)
    text = scene.slack.accepted[0]["blocks"][1]["text"]["text"]
    assert f"<http://ts.example/runs/{scene.run.id}#alert-{id_}|tagger>" in text


def test_nothing_is_told_twice(scene: Scene):
    scene.opens()
    scene.passes(3600)
    assert scene.told() == [opened()]


def test_with_nothing_to_do_the_outbox_sleeps(scene: Scene):
    assert scene.outbox.step() == 1800.0


def test_alerts_that_open_together_share_a_message(scene: Scene):
    for number in range(3):
        scene.opens(number)
    scene.passes(2)
    assert scene.told() == ["[CRITICAL] 3 alerts opened – tagger (project nlp)"]


def test_what_opened_and_what_ended_are_never_mixed(scene: Scene):
    scene.opens(0)
    scene.resolves(0)
    scene.opens(1)
    scene.passes(5)
    assert scene.told() == ["[CRITICAL] 2 alerts opened – tagger (project nlp)", resolved(0)]


def test_an_alert_that_flaps_is_told_in_the_order_it_happened(scene: Scene):
    scene.opens()
    scene.resolves()
    scene.opens()
    scene.resolves()
    scene.passes(10)
    assert scene.told() == [opened(), resolved(), opened(), resolved()]


def test_three_hundred_alerts_in_ten_seconds_are_a_few_posts_and_none_is_lost(scene: Scene):
    for number in range(300):
        scene.opens(number)
        scene.passes(1 / 30)
    scene.passes(5)
    counts = [alerts_in(text) for text in scene.told()]
    assert sum(counts) == 300
    assert len(counts) <= 8
    assert scene.states() == {"sent": 300}


def test_slack_gets_one_message_a_second_at_most(scene: Scene):
    times: list[float] = []
    scene.slack.on_post = lambda: times.append(scene.now)
    for _ in range(5):
        scene.opens()
        scene.resolves()
    scene.passes(30)
    gaps = [b - a for a, b in pairwise(times)]
    assert len(times) == 10
    assert min(gaps) >= 1.0


# Muted


def test_a_muted_alert_is_counted_and_not_sent(scene: Scene):
    scene.mutes(scene.opens(0))
    scene.opens(1)
    scene.passes(5)
    assert scene.told() == [opened(1)]
    said = scene.slack.accepted[0]["blocks"][-1]["elements"][0]["text"]
    assert said == "1 more changed while muted and was not sent."
    assert scene.states() == {"sent": 1, "muted": 1}


def test_muted_alerts_alone_make_no_message(scene: Scene):
    scene.mutes(scene.opens())
    scene.passes(100)
    assert scene.slack.posts == []
    assert scene.status.muted == 1


# When Slack has trouble


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, "rollup_error"),
        Reply(hang=True),
        Reply(garbage=b"\x00\x01\x02\r\n\r\n"),
        Reply(302, "", {"Location": "http://127.0.0.1:1/"}),
    ],
    ids=["500", "hang", "garbage", "redirect"],
)
def test_a_passing_fault_delays_and_loses_nothing(scene: Scene, reply: Reply):
    scene.timeout = reply.timeout
    scene.outbox = scene.another_server()
    scene.slack.script.append(reply)
    scene.opens()
    scene.passes(2)
    assert scene.told() == []
    assert scene.states() == {"waiting": 1}
    assert scene.status.last_answer
    scene.passes(5)
    assert scene.told() == [opened()]


def test_slack_is_left_alone_for_as_long_as_it_asks(scene: Scene):
    scene.slack.script.append(Reply(429, "rate_limited", {"Retry-After": "120"}))
    scene.opens(0)
    scene.passes(2)
    scene.opens(1)
    scene.passes(115)
    assert len(scene.slack.posts) == 1
    scene.passes(10)
    assert scene.told() == ["[CRITICAL] 2 alerts opened – tagger (project nlp)"]


def test_retries_become_rarer(scene: Scene):
    times: list[float] = []
    scene.slack.on_post = lambda: times.append(scene.now)
    scene.slack.always = Reply(503, "")
    scene.opens()
    scene.passes(3 * 3600)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[:3] == pytest.approx([3.5, 5.5, 9.5])  # 2, 4, 8 and the gathering
    assert gaps == sorted(gaps)
    assert max(gaps) < 3700
    assert len(times) < 20


def test_what_cannot_be_delivered_for_a_day_is_dead_and_visible(scene: Scene):
    scene.slack.always = Reply(503, "overloaded")
    scene.opens()
    scene.passes(GIVE_UP_SECONDS + 2 * 3600)
    posts = len(scene.slack.posts)
    scene.slack.always = None
    scene.passes(GIVE_UP_SECONDS)
    assert len(scene.slack.posts) == posts
    assert scene.states() == {"dead": 1}
    assert (scene.status.dead, scene.status.state) == (1, "on")
    with scene.database.read() as session:
        assert "503 overloaded" in rows.dead(session, "slack")[0].last_answer


def test_a_refused_message_is_kept_and_the_next_one_goes_out(scene: Scene):
    scene.slack.script.append(Reply(400, "invalid_payload"))
    scene.opens(0)
    scene.passes(2)
    scene.opens(1)
    scene.passes(2)
    assert scene.told() == [opened(1)]
    assert scene.states() == {"dead": 1, "sent": 1}
    with scene.database.read() as session:
        kept = rows.dead(session, "slack")[0]
    assert kept.news["title"] == "Mask lost at layer_0"
    assert "invalid_payload" in kept.last_answer


def test_a_refused_group_goes_out_in_parts_and_only_the_one_to_blame_is_given_up(scene: Scene):
    scene.slack.refuses = lambda body: "layer_3" in str(body)
    for number in range(8):
        scene.opens(number)
    scene.passes(60)
    assert scene.states() == {"dead": 1, "sent": 7}
    assert sum(map(alerts_in, scene.told())) == 7
    (given_up,) = scene.status.given_up
    assert (given_up.title, given_up.run_name) == ("Mask lost at layer_3", "tagger")
    assert "400 invalid_blocks" in given_up.answer


def test_after_a_refusal_groups_become_large_again(scene: Scene):
    scene.slack.script.append(Reply(400, "invalid_blocks"))
    for number in range(2):
        scene.opens(number)
    scene.passes(20)
    for number in range(8):
        scene.opens(number)
    scene.passes(20)
    for number in range(8):
        scene.resolves(number)
    scene.passes(20)
    assert [alerts_in(text) for text in scene.told()[:2]] == [1, 1]
    assert scene.told()[-1] == "[RESOLVED] 8 alerts resolved – tagger (project nlp)"


def test_what_was_given_up_is_tried_again_when_a_person_says_so(scene: Scene):
    scene.slack.script.append(Reply(400, "invalid_payload"))
    scene.opens()
    scene.passes(GIVE_UP_SECONDS + 3600)
    assert scene.channels.try_again("slack") == 1
    scene.passes(2)
    assert scene.told() == [opened()]
    assert scene.states() == {"sent": 1}
    assert scene.channels.try_again("slack") == 0


def test_what_is_tried_again_in_vain_is_given_up_again_with_the_new_answer(scene: Scene):
    scene.slack.script.extend([Reply(400, "invalid_payload"), Reply(503, "overloaded")])
    scene.opens()
    scene.passes(GIVE_UP_SECONDS + 3600)
    scene.channels.try_again("slack")
    scene.passes(3600)
    assert scene.told() == []
    assert "503 overloaded" in scene.status.given_up[0].answer


def test_through_a_channel_that_is_off_nothing_is_tried_again(scene: Scene):
    scene.slack.script.append(Reply(404, "no_service"))
    scene.opens()
    scene.passes(GIVE_UP_SECONDS + 3600)
    with pytest.raises(ConflictError, match=r"off: .*404 no_service.*test message first"):
        scene.channels.try_again("slack")
    assert scene.states() == {"dead": 1}


def test_a_webhook_that_is_gone_switches_the_channel_off_and_keeps_the_news(scene: Scene):
    scene.slack.script.append(Reply(404, "no_service"))
    scene.opens(0)
    scene.passes(2)
    scene.opens(1)
    scene.passes(3600)
    assert len(scene.slack.posts) == 1
    assert scene.status.state == "off"
    assert "404 no_service" in scene.status.off_reason
    assert scene.status.waiting == 2


def test_a_channel_that_is_off_stays_off_over_a_restart(scene: Scene):
    scene.slack.script.append(Reply(404, "no_service"))
    scene.opens()
    scene.passes(2)
    scene.outbox = scene.another_server()
    scene.passes(100)
    assert scene.status.state == "off"
    assert len(scene.slack.posts) == 1


def test_a_new_webhook_switches_the_channel_on_and_tells_what_waited(scene: Scene):
    scene.slack.script.append(Reply(410, "channel_is_archived"))
    scene.opens()
    scene.passes(2)
    scene.outbox = scene.another_server(scene.slack.url + "new")
    scene.passes(5)
    assert scene.status.state == "on"
    assert scene.told() == [opened()]


def test_a_test_message_that_arrives_switches_the_channel_on(scene: Scene):
    scene.slack.script.append(Reply(403, "invalid_token"))
    scene.opens()
    scene.passes(2)
    assert scene.channels.test("slack").delivered
    scene.passes(5)
    assert scene.told() == ["Test message of trainsanity", opened()]


def test_a_test_message_shows_what_slack_really_said(scene: Scene):
    scene.slack.script.append(Reply(404, "no_service"))
    trial = scene.channels.test("slack")
    assert (trial.delivered, trial.status, trial.body) == (False, 404, "no_service")
    assert scene.status.state == "off"


def test_a_channel_that_is_off_for_a_day_gives_up_its_news(scene: Scene):
    scene.slack.script.append(Reply(404, "no_service"))
    scene.opens()
    scene.passes(GIVE_UP_SECONDS + 3600)
    assert scene.states() == {"dead": 1}


def test_a_webhook_that_points_elsewhere_is_off_from_the_start_and_says_why(scene: Scene):
    scene.outbox = scene.another_server("https://evil.example/services/T/B/s3cr3t")
    scene.opens()
    scene.passes(10)
    assert scene.status.state == "off"
    assert "TRAINSANITY_SLACK_ALLOWED_HOSTS" in scene.status.off_reason
    assert "s3cr3t" not in str(scene.status)


def test_a_configuration_that_was_put_right_is_on_at_the_next_start(scene: Scene):
    localhost = scene.slack.url.replace("127.0.0.1", "localhost")
    scene.outbox = scene.another_server(localhost)
    assert scene.status.state == "off"
    scene.outbox = scene.another_server()
    assert scene.status.state == "on"


def test_a_fault_of_our_own_while_sending_loses_nothing(scene: Scene, caplog):
    channel = next(iter(scene.channels))
    send = channel.send
    channel.send = lambda message: 1 / 0
    scene.opens()
    scene.passes(2)
    channel.send = send
    scene.passes(10)
    assert scene.told() == [opened()]
    assert "ZeroDivisionError" in caplog.text


# Restarts and companions


def interrupted(scene: Scene, at: str) -> None:
    """The process is killed at a moment of delivery, and another one takes over."""
    channel = next(iter(scene.channels))
    send = channel.send

    def killed_before(message):
        raise Killed

    def killed_after(message):
        send(message)
        raise Killed

    channel.send = {"before sending": killed_before, "after sending": killed_after}[at]
    with pytest.raises(Killed):
        scene.passes(2)
    scene.outbox = scene.another_server()


def test_killed_before_sending_nothing_is_missing(scene: Scene):
    scene.opens()
    interrupted(scene, "before sending")
    scene.passes(LEASE_SECONDS + 5)
    assert scene.told() == [opened()]


def test_killed_while_noting_the_answer_the_message_comes_again_with_the_same_id(scene: Scene):
    """The one moment in which nobody can know: rather twice than never, and recognisable."""
    id_ = scene.opens()
    interrupted(scene, "after sending")
    scene.passes(LEASE_SECONDS + 5)
    assert scene.told() == [opened(), opened()]
    contexts = [body["blocks"][-1]["elements"][0]["text"] for body in scene.slack.accepted]
    assert all(id_ in context for context in contexts)


@pytest.mark.parametrize("moment", range(4))
def test_a_restart_in_any_state_tells_the_beginning_and_the_end_once(scene: Scene, moment: int):
    story: list[Callable[[], None]] = [
        scene.opens,
        lambda: scene.passes(3),
        scene.resolves,
        lambda: scene.passes(3),
    ]
    for number, event in enumerate(story):
        event()
        if number == moment:
            scene.outbox = scene.another_server()
    scene.passes(100)
    assert scene.told() == [opened(), resolved()]


def test_an_end_is_never_told_before_its_beginning(scene: Scene):
    scene.slack.script.append(Reply(500, ""))
    scene.opens()
    scene.passes(2)
    scene.resolves()
    scene.passes(30)
    assert scene.told() == [opened(), resolved()]


def test_servers_that_share_a_database_tell_everything_once(scene: Scene):
    other = scene.another_server()
    for number in range(20):
        scene.opens(number)
        scene.now += 2
        for outbox in (scene.outbox, other, scene.outbox):
            outbox.step()
    scene.passes(5)
    assert scene.states() == {"sent": 20}
    assert sorted(scene.told()) == sorted(opened(number) for number in range(20))


def test_a_message_in_another_servers_hands_is_not_sent_by_this_one(scene: Scene):
    scene.opens()
    scene.now += 2
    channel = next(iter(scene.channels))
    send, other = channel.send, scene.another_server()

    def send_while_the_other_looks(message):
        scene.now += 5
        other.step()
        return send(message)

    channel.send = send_while_the_other_looks
    scene.outbox.step()
    assert scene.told() == [opened()]


def test_two_servers_at_work_at_once_tell_everything_once(scene: Scene, monkeypatch):
    """The same with real threads, a real clock and every claim contested."""
    monkeypatch.setattr("trainsanity_server.services.outbox.GATHER_SECONDS", 0.0)
    scene.clock = time.time
    servers = [scene.another_server() for _ in range(3)]
    for outbox in servers:
        outbox.start()
    for number in range(60):
        scene.opens(number)
        servers[number % 3].wake()
    # Three servers with a message a second each: most of a minute on a machine that is busy.
    scene.slack.wait_until(lambda: sum(map(alerts_in, scene.told())) >= 60, seconds=100)
    for outbox in servers:
        outbox.stop()
    assert sum(map(alerts_in, scene.told())) == 60
    assert scene.states() == {"sent": 60}


def alerts_in(headline: str) -> int:
    many = re.search(r"(\d+) alerts opened", headline)
    return int(many[1]) if many else 1


def test_the_running_thread_tells_an_alert(database: Database, slack: SlackReceiver, monkeypatch):
    """The same with the real clock and the real thread."""
    monkeypatch.setattr("trainsanity_server.services.outbox.GATHER_SECONDS", 0.0)
    scene = Scene(database, slack, clock=time.time)
    scene.outbox.start()
    scene.opens()
    scene.outbox.wake()
    slack.wait_until(lambda: len(slack.posts) == 1)
    scene.outbox.stop()
    assert scene.told() == [opened()]
    assert scene.states() == {"sent": 1}


def test_news_are_written_with_the_alert_or_not_at_all(scene: Scene):
    def half(session):
        session.merge(scene._alert(0))
        rows.add(session, ("slack",), "opened", scene._alert(0), scene.run, scene.now)
        session.flush()
        raise Killed

    with pytest.raises(Killed):
        scene.database.write(half)
    with scene.database.read() as session:
        assert session.scalars(select(OutboxRow)).all() == []
