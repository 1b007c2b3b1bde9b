"""What holds for every channel, found by the folder walk, and what the API says of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from cast import lying
from fastapi.testclient import TestClient
from rules_for_tests import rulebook
from slack_receiver import Reply, SlackReceiver
from stage import eventually

from trainsanity import wire
from trainsanity.wire import Packet
from trainsanity_server.app import create_app
from trainsanity_server.channels import (
    Channel,
    DeliveryError,
    Message,
    channel_types,
    configured,
)
from trainsanity_server.channels.message import Event
from trainsanity_server.settings import PREFIX, Settings

# An address of each channel that is set up rightly, but where nobody listens.
DEAD_ENDS = {"slack": "http://127.0.0.1:1/services/T0/B0/s3cr3ts3cr3ts3cr3t"}
# What else must be set for that.
FOR_TESTS = {"slack_allowed_hosts": ["127.0.0.1"]}


def field_of(kind: type[Channel]) -> str:
    return kind.setting.removeprefix(PREFIX).lower()


def settings(**values: object) -> Settings:
    return Settings(**FOR_TESTS, **values)


@pytest.fixture(params=channel_types(), ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Channel]:
    return request.param


@pytest.fixture
def channel(kind: type[Channel]) -> Iterator[Channel]:
    channel = kind.from_settings(settings(**{field_of(kind): DEAD_ENDS[kind.name]}))
    with closing(channel):
        yield channel


# The contract


def test_names_differ():
    names = [kind.name for kind in channel_types()]
    assert len(set(names)) == len(names) >= 1


def test_its_file_is_called_like_the_channel(kind):
    assert Path(inspect.getfile(kind)).stem == kind.name


def test_people_can_read_what_it_is(kind):
    assert kind.title
    assert inspect.getdoc(kind)


def test_its_setting_exists_and_is_a_secret(kind):
    field = Settings.model_fields[field_of(kind)]
    assert "Secret" in str(field.annotation)
    assert field.description


def test_without_its_setting_it_is_absent(kind):
    assert kind.from_settings(settings()) is None
    assert kind.from_settings(settings(**{field_of(kind): " "})) is None


def test_with_its_setting_it_is_there(kind):
    (found,) = configured(settings(**{field_of(kind): DEAD_ENDS[kind.name]}))
    assert isinstance(found, kind)
    found.close()


def test_its_pace_is_stated(kind):
    assert kind.rate > 0


def test_a_right_configuration_is_fine(channel):
    channel.check()


def test_its_secret_is_masked(channel):
    assert "s3cr3t" in channel.address
    assert "s3cr3t" not in channel.masked_address


def test_where_nobody_listens_it_says_so_and_may_try_again(channel):
    with pytest.raises(DeliveryError) as caught:
        channel.send(Message(Event.TEST, "http://ts.example/"))
    assert not caught.value.permanent
    assert "s3cr3t" not in str(caught.value)


# From a packet to Slack, through the whole server


def send(client: TestClient, packets: Sequence[Packet]) -> None:
    for packet in packets:
        answer = client.post(
            f"/api/v1/runs/{packet.run_id}/packets",
            content=wire.encode(packet),
            headers={"Content-Type": wire.MEDIA_TYPE},
        )
        assert answer.status_code == 200, answer.text


def test_what_a_rule_finds_arrives_in_slack_and_so_does_its_end(client, slack):
    run, packets = lying()
    send(client, packets)
    slack.wait_until(lambda: len(slack.posts) == 1)
    assert slack.posts[0]["text"].startswith("[CRITICAL] ")
    assert slack.posts[0]["text"].endswith("– lying (project nlp)")
    # Else what is judged afterwards would open it again.
    eventually(lambda: client.get(f"/api/v1/runs/{run.id}").json()["settled"])
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    assert alert["id"] in str(slack.posts[0])
    client.post(f"/api/v1/alerts/{alert['id']}/resolve")
    slack.wait_until(lambda: len(slack.posts) == 2)
    assert slack.posts[1]["text"].startswith("[RESOLVED] ")


# The API


@pytest.fixture
def slack() -> Iterator[SlackReceiver]:
    with SlackReceiver() as receiver:
        yield receiver


@pytest.fixture
def client(database_url: str, slack: SlackReceiver, monkeypatch) -> Iterator[TestClient]:
    monkeypatch.setattr("trainsanity_server.services.outbox.GATHER_SECONDS", 0.1)
    set_up = settings(database_url=database_url, slack_webhook_url=slack.url)
    app = create_app(set_up, rulebook=rulebook())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def only(client: TestClient) -> dict:
    (channel,) = client.get("/api/v1/channels").json()["channels"]
    return channel


def test_the_list_shows_a_channel_without_its_secret(client):
    channel = only(client)
    assert (channel["name"], channel["state"]) == ("slack", "on")
    assert channel["address"] == "http://127.0.0.1/…ABCD"
    assert "s3cr3t" not in str(channel)


def test_a_channel_that_is_not_set_up_says_what_to_set(database_url):
    with TestClient(
        create_app(settings(database_url=database_url)), base_url="http://127.0.0.1"
    ) as client:
        channel = only(client)
        answer = client.post("/api/v1/channels/slack/test")
    assert (channel["state"], channel["setting"]) == ("absent", "TRAINSANITY_SLACK_WEBHOOK_URL")
    assert answer.status_code == 409
    assert "TRAINSANITY_SLACK_WEBHOOK_URL" in answer.json()["detail"]


def test_the_test_button_sends_a_real_message(client, slack):
    answer = client.post("/api/v1/channels/slack/test")
    assert answer.json() == {"delivered": True, "status": 200, "body": "ok", "reason": ""}
    assert slack.posts[0]["text"] == "Test message of trainsanity"
    assert only(client)["last_answer"] == "200 ok"


def test_the_test_button_passes_on_slacks_own_refusal(client, slack):
    slack.script.append(Reply(404, "no_service"))
    answer = client.post("/api/v1/channels/slack/test").json()
    assert (answer["delivered"], answer["status"], answer["body"]) == (False, 404, "no_service")
    assert only(client)["state"] == "off"
    assert "no_service" in only(client)["off_reason"]


def test_the_test_button_tells_why_nothing_came_back(client, slack):
    slack.script.append(Reply(garbage=b"not HTTP\r\n\r\n"))
    answer = client.post("/api/v1/channels/slack/test").json()
    assert (answer["delivered"], answer["status"], answer["body"]) == (False, None, "")
    assert "was not reached" in answer["reason"]


def test_an_unknown_channel_is_told_from_the_known_ones(client):
    answer = client.post("/api/v1/channels/pigeon/test")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "there is no channel 'pigeon'. Known channels: slack"
