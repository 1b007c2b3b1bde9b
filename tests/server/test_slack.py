"""The Slack channel: how messages look, what answers mean, where nothing is ever sent."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slack_receiver import PATIENT, WEBHOOK_PATH, Reply, SlackReceiver

from trainsanity.rules import Witness
from trainsanity_server.channels import Answer, DeliveryError, Message, MessageRejectedError, News
from trainsanity_server.channels.message import Event, distinct_values, duration
from trainsanity_server.channels.peer import Allowed
from trainsanity_server.channels.slack import SlackChannel
from trainsanity_server.channels.slack_blocks import escaped, payload

BASE = "http://127.0.0.1:8321"
MASK_LOST = News(
    alert_id="0197a000-0000-7000-8000-000000000001",
    rule="mask-coverage-mismatch",
    subject="add_1",
    severity="critical",
    title='Mask lost after layer "add_1"',
    message="Keras reports accuracy 0.56. Over the positions that are not padding it is 0.22.",
    run_id="0197a000-0000-7000-8000-0000000000aa",
    run_name="resnet-7",
    project="nlp",
    url=f"{BASE}/runs/0197a000-0000-7000-8000-0000000000aa",
    witnesses=(Witness("accuracy/reported", 0.56), Witness("accuracy/unmasked", 0.22)),
    suggestion="Write Add()([x, y]) instead of x + y at model.py:41.",
    certainty="They differ by 0.34; rounding explains 1e-06.",
    first_step=12,
    last_step=300,
    count=288,
    opened_at=1_800_000_000.0,
)


def opened(*news: News, url: str = f"{BASE}/") -> Message:
    return Message(Event.OPENED, url, news)


def resolved(*news: News) -> Message:
    return Message(Event.RESOLVED, f"{BASE}/", news)


def texts(body: dict) -> list[str]:
    """Every text of a payload that people read, in order."""
    found = []
    for block in body["blocks"]:
        found += [e["text"] for e in block.get("elements", [])]
        if "text" in block:
            found.append(block["text"]["text"])
    return [body["text"], *found]


# How messages look


def test_an_opened_alert_tells_both_witnesses_where_since_when_and_what_to_do():
    assert texts(payload(opened(MASK_LOST))) == [
        '[CRITICAL] Mask lost after layer "add_1" – resnet-7 (project nlp)',
        '[CRITICAL] Mask lost after layer "add_1"',
        f"Run <{MASK_LOST.url}|resnet-7> in project *nlp*",
        "Keras reports accuracy 0.56. Over the positions that are not padding it is 0.22.",
        "*What the witnesses say*\n•  accuracy/reported: *0.56*\n•  accuracy/unmasked: *0.22*",
        "*Since* step 12, seen 288 times up to step 300.\n"
        "*How sure:* They differ by 0.34; rounding explains 1e-06.",
        "*What to do:* Write Add()([x, y]) instead of x + y at model.py:41.",
        "rule mask-coverage-mismatch · about add_1 · "
        "first seen <!date^1800000000^{date_num} {time_secs}|2027-01-15 08:00:00 UTC> · "
        "alert 0197a000-0000-7000-8000-000000000001",
    ]


def test_a_resolved_alert_is_a_message_of_its_own_that_says_how_long_it_lasted():
    over = replace(MASK_LOST, resolved_at=MASK_LOST.opened_at + 3900)
    assert texts(payload(resolved(over))) == [
        '[RESOLVED] Mask lost after layer "add_1" – resnet-7 (project nlp)',
        '[RESOLVED] Mask lost after layer "add_1"',
        f"Run <{MASK_LOST.url}|resnet-7> in project *nlp*",
        "*Over after 1 h 5 min.* "
        "It was a critical alert, from step 12 to step 300, seen 288 times.",
        "rule mask-coverage-mismatch · about add_1 · "
        "resolved <!date^1800003900^{date_num} {time_secs}|2027-01-15 09:05:00 UTC> · "
        "alert 0197a000-0000-7000-8000-000000000001",
    ]


def test_a_group_names_the_worst_five_and_counts_the_rest():
    advice = replace(MASK_LOST, severity="advice", title="Loss oscillates")
    many = [replace(advice, alert_id=f"id-{n}", opened_at=float(n)) for n in range(27)]
    said = texts(payload(opened(*many, MASK_LOST)))
    assert said[0] == "[CRITICAL] 28 alerts opened – resnet-7 (project nlp)"
    assert said[2] == (
        f'*[CRITICAL]* <{MASK_LOST.url}|Mask lost after layer "add_1">\n'
        "resnet-7 (project nlp): accuracy/reported *0.56*, accuracy/unmasked *0.22* – since step 12"
    )
    assert [line.split()[0] for line in said[3:7]] == ["*[ADVICE]*"] * 4
    assert said[7] == f"and 23 more: <{BASE}/|see all of them>"
    assert said[8] == f"alerts {MASK_LOST.alert_id}, id-0, id-1, id-2, id-3"


def test_a_group_over_several_runs_says_how_many():
    other = replace(MASK_LOST, run_id="other")
    assert payload(opened(MASK_LOST, other))["text"] == "[CRITICAL] 2 alerts opened – 2 runs"


def test_what_was_muted_is_counted():
    said = texts(payload(replace(opened(MASK_LOST), hidden=3)))
    assert said[-1] == "3 more changed while muted and were not sent."


def test_a_run_named_like_a_mention_calls_nobody():
    evil = replace(
        MASK_LOST,
        run_name="<!channel>",
        project="<@U123>",
        title="<!here> & <https://evil.example|click>",
        subject="<!everyone>",
        message="<!channel>",
        suggestion="<!channel>",
        certainty="<!channel>",
        witnesses=(Witness("<!channel>", "<!channel>"), Witness("b", 1.0)),
    )
    for message in (opened(evil), resolved(evil), opened(evil, evil), resolved(evil, evil)):
        body = json.dumps(payload(message))
        assert "<!channel" not in body
        assert "<!here" not in body
        assert "<!everyone" not in body
        assert "<@U123" not in body
        assert "<https://evil" not in body


def test_slack_makes_no_links_of_its_own_from_users_words():
    blocks = payload(opened(MASK_LOST))["blocks"]
    assert all(b["text"]["verbatim"] for b in blocks if b["type"] == "section")


anything = st.text(max_size=4000) | st.sampled_from(
    ["&" * 9000, "<!channel>" * 900, "\n\x00\u202e"]
)
values = st.floats() | anything


@given(
    st.builds(
        News,
        alert_id=anything,
        rule=anything,
        subject=anything,
        severity=st.sampled_from(["critical", "warning", "advice"]),
        title=anything,
        message=anything,
        run_id=anything,
        run_name=anything,
        project=anything,
        url=st.just(MASK_LOST.url),
        witnesses=st.lists(st.builds(Witness, anything, values, anything)).map(tuple),
        suggestion=anything,
        certainty=anything,
        first_step=st.integers(0, 2**53),
    ),
    st.integers(1, 40),
    st.sampled_from([Event.OPENED, Event.RESOLVED]),
)
def test_every_message_keeps_the_limits_of_slack(news: News, copies: int, event: Event):
    body = payload(Message(event, f"{BASE}/", (news,) * copies))
    assert body["text"]
    assert len(json.dumps(body, ensure_ascii=False)) < 8000
    assert len(body["blocks"]) <= 50
    header = body["blocks"][0]
    assert header["type"] == "header"
    assert 0 < len(header["text"]["text"]) <= 150
    for block in body["blocks"]:
        assert 1 <= len(block.get("text", {}).get("text", "-")) <= 3000
        assert all(len(e["text"]) <= 3000 for e in block.get("elements", []))


def test_lines_of_a_suggestion_stay_lines():
    said = texts(payload(opened(replace(MASK_LOST, suggestion="Write\n\tAdd()([x, y])\x07\nhere"))))
    assert "*What to do:* Write\nAdd()([x, y])\nhere" in said


def test_a_cut_never_leaves_half_an_entity():
    assert escaped("a&b&c", 11) == "a&amp;b…"
    assert escaped("a&b", 7) == "a&amp;b"


def test_witnesses_that_differ_look_different():
    close = [Witness("a", 0.123456789), Witness("b", 0.123456788)]
    assert distinct_values(close) == ["0.123456789", "0.123456788"]


def test_witnesses_carry_units_and_odd_numbers_as_they_are():
    odd = [Witness("a", 12.5, "MiB"), Witness("b", math.nan), Witness("c", math.inf, "s")]
    assert distinct_values(odd) == ["12.5 MiB", "NaN", "∞ s"]
    assert distinct_values([Witness("declared shape", "(None, 3)", "shape")]) == ["(None, 3)"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
        (-5, "0 s"),
    ],
)
def test_durations_are_told_in_two_units(seconds: float, words: str):
    assert duration(seconds) == words


# What Slack's answers mean


@pytest.fixture
def slack():
    with SlackReceiver() as receiver:
        yield receiver


@pytest.fixture
def channel(slack: SlackReceiver):
    with closing(SlackChannel(slack.url, allowed_hosts=HERE, timeout=PATIENT)) as channel:
        yield channel


HERE = ("127.0.0.1",)


def failure(channel: SlackChannel) -> DeliveryError:
    with closing(channel), pytest.raises(DeliveryError) as caught:
        channel.send(opened(MASK_LOST))
    assert "s3cr3t" not in str(caught.value)
    return caught.value


def test_a_message_arrives_as_json(slack: SlackReceiver, channel: SlackChannel):
    assert channel.send(opened(MASK_LOST)) == Answer(200, "ok")
    assert slack.posts == [payload(opened(MASK_LOST))]
    assert slack.paths == [WEBHOOK_PATH]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, "invalid_token"),
        (400, "invalid_token"),
        (404, "no_service"),
        (404, "channel_not_found"),
        (410, "channel_is_archived"),
        (403, "action_prohibited"),
    ],
)
def test_a_webhook_that_is_gone_is_gone_for_good(slack, channel, status, body):
    slack.script.append(Reply(status, body))
    error = failure(channel)
    assert error.permanent
    assert error.answer == Answer(status, body)
    assert f"{status} {body}" in str(error)


def test_a_refused_payload_is_the_fault_of_this_message_alone(slack, channel):
    slack.script.append(Reply(400, "invalid_payload"))
    error = failure(channel)
    assert isinstance(error, MessageRejectedError)
    assert not error.permanent
    assert channel.send(opened(MASK_LOST)) == Answer(200, "ok")


def test_too_many_requests_says_how_long_to_wait(slack, channel):
    slack.script.append(Reply(429, "rate_limited", {"Retry-After": "30"}))
    error = failure(channel)
    assert (error.permanent, error.retry_after) == (False, 30.0)


def test_a_date_in_retry_after_is_understood(slack):
    slack.script.append(Reply(429, "", {"Retry-After": "Fri, 15 Jan 2027 08:00:30 GMT"}))
    channel = SlackChannel(slack.url, allowed_hosts=HERE, clock=lambda: 1_800_000_000.0)
    assert failure(channel).retry_after == 30.0


@pytest.mark.parametrize("value", ["soon", "-1", "²", ""])
def test_a_senseless_retry_after_is_ignored(slack, channel, value):
    slack.script.append(Reply(429, "", {"Retry-After": value.encode().decode("latin-1")}))
    assert failure(channel).retry_after is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, "rollup_error"),
        Reply(503, ""),
        Reply(hang=True),
        Reply(garbage=b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        Reply(200, "<html>Please log in to the hotel's network</html>"),
    ],
    ids=["500", "503", "hang", "garbage", "captive portal"],
)
def test_a_passing_fault_may_be_tried_again(slack, reply):
    slack.script.append(reply)
    with closing(SlackChannel(slack.url, allowed_hosts=HERE, timeout=reply.timeout)) as channel:
        error = failure(channel)
        assert not error.permanent
        assert not isinstance(error, MessageRejectedError)
        assert channel.send(opened(MASK_LOST)) == Answer(200, "ok")


def test_a_server_that_is_away_may_be_tried_again():
    with SlackReceiver() as gone:
        url = gone.url
    error = failure(SlackChannel(url, allowed_hosts=HERE))
    assert not error.permanent
    assert "refused" in str(error)


def test_an_endless_answer_is_cut(slack, channel):
    slack.script.append(Reply(500, "x" * 1_000_000))
    assert len(failure(channel).answer.body) == 2000


# Where nothing is ever sent


def test_a_redirect_is_not_followed(slack, channel):
    with SlackReceiver() as elsewhere:
        slack.script.append(Reply(307, "", {"Location": elsewhere.url}))
        assert "redirect" in str(failure(channel))
        assert elsewhere.posts == []


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/services/T/B/s3cr3t",
        "https://hooks.slack.com.evil.example/services/T/B/s3cr3t",
        "https://hooks.slack.com@evil.example/services/T/B/s3cr3t",
        "https://127.0.0.1/s3cr3t",
        "http://169.254.169.254/latest/meta-data/s3cr3t",
        "https://[::1]/s3cr3t",
        "https://[fe80::1]/s3cr3t",
        "file:///etc/s3cr3t",
        "s3cr3t",
        "hooks.slack.com/services/T/B/s3cr3t",
    ],
)
def test_only_slack_itself_is_talked_to(url):
    error = failure(SlackChannel(url))
    assert error.permanent
    assert "TRAINSANITY_SLACK_ALLOWED_HOSTS" in str(error)


def test_an_address_without_its_beginning_says_so():
    error = failure(SlackChannel("hooks.slack.com/services/T/B/s3cr3t"))
    assert "must begin with https://" in str(error)
    assert "s3cr3t" not in str(error)


@pytest.mark.parametrize(
    "url", ["https://[hooks/s3cr3t", "https://hooks.slack.com:99999/services/T/B/s3cr3t"]
)
def test_an_address_that_cannot_be_read_switches_the_channel_off(url):
    channel = SlackChannel(url)
    error = failure(channel)
    assert error.permanent
    assert "cannot be read" in str(error)
    assert "s3cr3t" not in str(error) + channel.masked_address


def test_slack_is_only_talked_to_in_secret():
    error = failure(SlackChannel("http://hooks.slack.com/services/T/B/s3cr3t"))
    assert error.permanent
    assert "https://" in str(error)


def test_a_trusted_name_that_resolves_to_this_machine_gets_nothing(slack):
    url = slack.url.replace("127.0.0.1", "localhost")
    error = failure(SlackChannel(url, allowed_hosts=("localhost",)))
    assert error.permanent
    assert "127.0.0.1, which is not a public address" in str(error)
    assert slack.posts == []


def test_slacks_own_name_resolving_to_this_machine_gets_nothing(slack, monkeypatch):
    """As a poisoned resolver would have it; only the lookup is replaced, the connection is real."""

    def poisoned(host, port, *args, **kwargs):
        assert host == "hooks.slack.com"
        return [(2, 1, 6, "", ("127.0.0.1", slack.port))]

    monkeypatch.setattr("socket.getaddrinfo", poisoned)
    error = failure(SlackChannel("https://hooks.slack.com/services/T/B/s3cr3t"))
    assert error.permanent
    assert "not a public address" in str(error)
    assert slack.posts == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_an_address_that_is_not_public_is_refused(address):
    allowed = Allowed.parse((), (), setting="X")
    with pytest.raises(DeliveryError, match="not a public address"):
        allowed.check_peer(address)


@pytest.mark.parametrize("address", ["3.68.175.98", "2606:4700::6810:1", "64:ff9b::344:af62"])
def test_a_public_address_is_fine(address):
    Allowed.parse((), (), setting="X").check_peer(address)


def test_an_operator_may_allow_an_inner_network():
    allowed = Allowed.parse((), ("chat.example", "10.1.2.0/24", "[::1]"), setting="X")
    allowed.check_peer("10.1.2.9")
    allowed.check_peer("::1")
    assert allowed.has_host("Chat.Example")
    assert allowed.has_host("10.1.2.3")
    with pytest.raises(DeliveryError, match=r"add 10\.1\.3\.9 to X"):
        allowed.check_peer("10.1.3.9")


# The webhook's address is a secret


def test_the_secret_is_masked():
    channel = SlackChannel("https://hooks.slack.com/services/T00000000/B00000000/s3cr3ts3cr3tABCD")
    assert channel.masked_address == "https://hooks.slack.com/…ABCD"
    assert (
        SlackChannel("https://hooks.slack.com/s3cr3t").masked_address == "https://hooks.slack.com/…"
    )


def test_sending_leaves_no_secret_in_the_log(channel, caplog):
    with caplog.at_level(0):
        channel.send(opened(MASK_LOST))
    assert "s3cr3t" not in caplog.text
