"""What programs see: the contract's addresses, shapes and errors."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cast import Training, diverging, healthy, lying
from fastapi.testclient import TestClient
from httpx2 import Response
from stage import MakeApp, eventually

from trainsanity import wire
from trainsanity.rules import all_rules
from trainsanity.wire import Audit, Packet
from trainsanity_server.services import runs
from trainsanity_server.storage.ids import new_id

PACKETS = {"Content-Type": wire.MEDIA_TYPE}
KEY = "ts_a-key-for-tests"


def post(client: TestClient, packet: Packet, cursor: int = 0, **headers: str) -> Response:
    return client.post(
        f"/api/v1/runs/{packet.run_id}/packets?cursor={cursor}",
        content=wire.encode(packet),
        headers={**PACKETS, **headers},
    )


def play(client: TestClient, packets: list[Packet]) -> None:
    for packet in packets:
        assert post(client, packet).status_code == 200
    run_id = packets[0].run_id
    if packets[-1].state != "running":
        eventually(lambda: client.get(f"/api/v1/runs/{run_id}").json()["settled"])


def problem(response: Response, status: int) -> dict:
    """The body, after it was found to be a problem document."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["type"] == "about:blank"
    return body


# Packets


def test_a_packet_is_acknowledged(client):
    run, packets = healthy()
    answer = post(client, packets[0])
    assert answer.status_code == 200
    assert answer.json() == {
        "next_seq": 1,
        "cursor": 0,
        "alerts": [],
        "settled": False,
        "run_url": f"http://127.0.0.1:8321/runs/{run.id}",
    }


def test_the_answer_brings_new_alerts(client):
    _, packets = lying()
    play(client, packets)
    answer = post(client, packets[-1]).json()
    assert answer["settled"]
    (alert,) = answer["alerts"]
    assert alert["rule"] == "accuracy-differs"
    assert post(client, packets[-1], cursor=answer["cursor"]).json()["alerts"] == []


def test_plain_msgpack_is_taken_too(client):
    _, packets = healthy()
    assert post(client, packets[0], **{"Content-Type": "application/msgpack"}).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_packet_is_unpacked(client, encoding, compress):
    run, packets = healthy()
    answer = client.post(
        f"/api/v1/runs/{run.id}/packets",
        content=compress(wire.encode(packets[0])),
        headers={**PACKETS, "Content-Encoding": encoding},
    )
    assert answer.json()["next_seq"] == 1


def test_the_wrong_packet_is_told_which_is_expected(client):
    _, packets = healthy()
    body = problem(post(client, packets[2]), 409)
    assert body["expected_seq"] == 0
    post(client, packets[0])
    assert problem(post(client, packets[2]), 409)["expected_seq"] == 1


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"rubbish", {}, 422, "Received"),
        (b"", {}, 422, "not a msgpack map"),
        (b"{}", {"Content-Type": "application/json"}, 415, "Received: 'application/json'"),
        (b"x", {"Content-Encoding": "br"}, 415, "Received: 'br'"),
        (b"rubbish", {"Content-Encoding": "gzip"}, 422, "not gzip data"),
        (
            gzip.compress(b"x" * 99, mtime=0)[:20],
            {"Content-Encoding": "gzip"},
            422,
            "in the middle of its gzip data",
        ),
        (b"x" * (wire.MAX_PACKET_BYTES + 1), {}, 413, "at most 8388608 bytes"),
        (
            gzip.compress(b"x" * (wire.MAX_PACKET_BYTES + 1), mtime=0),
            {"Content-Encoding": "gzip"},
            413,
            "unpacked",
        ),
    ],
)
def test_what_is_no_packet_is_refused(client, body, headers, status, words):
    answer = client.post(
        f"/api/v1/runs/{new_id()}/packets", content=body, headers={**PACKETS, **headers}
    )
    assert words in problem(answer, status)["detail"]


def test_a_body_that_does_not_say_its_length_is_bounded_too(client):
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 65536

    answer = client.post(f"/api/v1/runs/{new_id()}/packets", content=endless(), headers=PACKETS)
    assert "at most 8388608 bytes" in problem(answer, 413)["detail"]


@pytest.mark.parametrize("run_id", ["abc", "0" * 32, "<script>", "A" * 36])
def test_a_run_that_cannot_be_called_so_is_refused(client, run_id):
    answer = client.post(f"/api/v1/runs/{run_id}/packets", content=b"", headers=PACKETS)
    assert "a run's id is a UUID" in problem(answer, 422)["detail"]


def test_a_cursor_is_a_number(client):
    answer = client.post(f"/api/v1/runs/{new_id()}/packets?cursor=x", content=b"", headers=PACKETS)
    assert "cursor" in problem(answer, 422)["detail"]


def test_a_name_with_markup_is_data(client):
    name = "<img src=x onerror=alert(1)>"
    run = Training(name, tags=["<b>"])
    run.declares(**{name: "<i>"})
    play(client, [run.packet(**{name: [1.0]}), run.packet(state="finished")])
    assert client.get(f"/api/v1/runs/{run.id}").json()["name"] == name
    (signal,) = client.get(f"/api/v1/runs/{run.id}/signals").json()["signals"]
    assert (signal["name"], signal["unit"]) == (name, "<i>")
    data = client.get(f"/api/v1/runs/{run.id}/signals/data", params={"name": name})
    assert data.json()["signals"][0]["value"] == [1.0]


# Runs


def test_a_run_has_the_shape_of_the_contract(client):
    run, packets = healthy()
    play(client, packets)
    shown = client.get(f"/api/v1/runs/{run.id}").json()
    assert shown["id"] == run.id
    assert {key: shown[key] for key in ("project", "name", "tags", "state", "settled")} == {
        "project": "nlp",
        "name": "healthy",
        "tags": ["test"],
        "state": "finished",
        "settled": True,
    }
    assert shown["started_at"] == "1970-01-12T13:46:40Z"
    assert shown["ended_at"] == "1970-01-12T13:46:44Z"
    assert shown["steps"] == 100
    assert (shown["keras_version"], shown["backend"]) == ("3.15.1", "tensorflow")
    assert shown["alert_counts"] == {"critical": 0, "warning": 0, "advice": 0}
    assert shown["config"] == {"units": 8}
    assert shown["environment"] == {"host": "here"}


def test_a_run_that_did_not_change_is_not_sent_again(client):
    run, packets = healthy()
    play(client, packets)
    first = client.get(f"/api/v1/runs/{run.id}")
    again = {"If-None-Match": first.headers["ETag"]}
    assert client.get(f"/api/v1/runs/{run.id}", headers=again).status_code == 304
    post(client, run.packet())
    assert client.get(f"/api/v1/runs/{run.id}", headers=again).status_code == 200


def test_the_newest_run_comes_first_and_pages_follow(client):
    ids = []
    for i in range(7):
        run = Training(f"run {i}", time=1000.0 + i // 2)  # some begin at the same moment
        post(client, run.packet())
        ids.append(run.id)
    found, cursor = [], None
    while True:
        page = client.get("/api/v1/runs", params={"limit": 3, "cursor": cursor or ""}).json()
        found += [run["id"] for run in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(found) == sorted(ids)
    assert [ids.index(i) // 2 for i in found] == [3, 2, 2, 1, 1, 0, 0]


def test_runs_can_be_looked_for(client):
    _, ended = healthy(project="vision", tags=["mnist", "größe"])
    play(client, ended)
    other, going = healthy(ended=False)
    play(client, going)

    def names(**query: str) -> list[str]:
        return [r["id"] for r in client.get("/api/v1/runs", params=query).json()["runs"]]

    assert names(project="vision") == [ended[0].run_id]
    assert names(state="running") == [other.id]
    assert names(q="MNIST") == [ended[0].run_id]
    assert names(q="health") == names(q="") == names()
    assert names(q="größe") == [ended[0].run_id]
    for id_ in (other.id, other.id[:30], other.id.replace("-", "")[:30]):
        assert names(q=id_) == [other.id]
    for nothing in ("-", "--", "\0", '"'):
        assert names(q=nothing) == []
    assert names(q="100%_") == []
    assert names(project="nowhere") == []


@pytest.mark.parametrize(
    "query",
    ["state=sleeping", "limit=0", "limit=501", "limit=x", "cursor=rubbish", "cursor=bnVsbA"],
)
def test_a_question_that_makes_no_sense_is_said_to_be_so(client, query):
    detail = problem(client.get(f"/api/v1/runs?{query}"), 422)["detail"]
    assert f"Received: '{query.partition('=')[2]}'" in detail


def test_a_long_value_is_cut_in_the_error(client):
    detail = problem(client.get(f"/api/v1/runs?q={'x' * 5000}"), 422)["detail"]
    assert "Received: 'xxx" in detail
    assert len(detail) < 300


def test_a_parameter_without_a_value_asks_for_nothing(client):
    run, packets = healthy()
    play(client, packets)
    page = client.get("/api/v1/runs?project=&state=&q=&limit=&cursor=")
    assert [found["id"] for found in page.json()["runs"]] == [run.id]


@pytest.mark.parametrize("path", ["", "/alerts", "/verdicts", "/signals", "/audits"])
def test_an_unknown_run_is_not_found(client, path):
    for run_id in (new_id(), "no-such-run"):
        problem(client.get(f"/api/v1/runs/{run_id}{path}"), 404)


def test_an_unknown_address_is_not_found(client):
    assert "/api/v1/nothing" in problem(client.get("/api/v1/nothing"), 404)["detail"]


def test_another_method_is_refused(client):
    detail = problem(client.put("/api/v1/runs"), 405)["detail"]
    assert detail == "/api/v1/runs takes GET. Received: PUT"


def test_a_deleted_run_is_gone(client):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    assert client.delete(f"/api/v1/runs/{run.id}").status_code == 204
    problem(client.get(f"/api/v1/runs/{run.id}"), 404)
    problem(client.delete(f"/api/v1/runs/{run.id}"), 404)
    assert client.get("/api/v1/runs").json()["runs"] == []
    problem(post(client, run.packet()), 410)
    eventually(lambda: client.get(f"/api/v1/alerts/{alert['id']}").status_code == 404)


# Alerts, verdicts, audits


def test_alerts_have_the_shape_of_the_contract(client):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    assert alert["run_id"] == run.id
    assert (alert["rule"], alert["subject"], alert["severity"], alert["state"]) == (
        "accuracy-differs",
        "accuracy",
        "critical",
        "open",
    )
    assert alert["title"] == "accuracy is not what it seems"
    assert alert["message"] == "reported 1.200, recomputed 0.900"
    assert [w["name"] for w in alert["witnesses"]] == ["accuracy/reported", "accuracy/recomputed"]
    assert {*alert["witnesses"][0]} == {"name", "value", "unit"}
    assert (alert["first_step"], alert["last_step"], alert["count"]) == (26, 100, 75)
    assert alert["suggestion"] == "look at the mask"
    assert alert["resolved_at"] is None


def test_a_witness_that_is_nan_is_a_text(client):
    run, packets = diverging()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    assert alert["witnesses"][0]["value"] == "NaN"


@pytest.mark.parametrize(
    ("actions", "state"),
    [
        (["acknowledge"], "acknowledged"),
        (["mute"], "muted"),
        (["mute", "unmute"], "open"),
        (["resolve"], "resolved"),
    ],
)
def test_people_act_on_alerts(client, actions, state):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    for action in actions:
        answer = client.post(f"/api/v1/alerts/{alert['id']}/{action}", json={"reason": "why not"})
        assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["state_reason"]) == (state, "why not")
    history = client.get(f"/api/v1/alerts/{alert['id']}").json()["transitions"]
    assert history[-1]["to_state"] == state


@pytest.mark.parametrize(
    ("action", "known"),
    [("mute", "'reason', 'until'"), ("unmute", "'reason'"), ("resolve", "'reason'")],
)
def test_a_member_that_no_call_knows_is_named(client, action, known):
    """`{"minutes": 30}` must not become a mute of a day."""
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    body = {"reason": "known", "minutes": 30, "to": 1}
    answer = client.post(f"/api/v1/alerts/{alert['id']}/{action}", json=body)
    assert problem(answer, 422)["detail"] == (
        f"body: no member is called 'minutes', 'to'; known are {known}"
    )
    assert client.get(f"/api/v1/alerts/{alert['id']}").json()["state"] == "open"


def test_a_mute_takes_an_end(client):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    mute = f"/api/v1/alerts/{alert['id']}/mute"
    problem(client.post(mute, json={"until": "2001-01-01T00:00:00Z"}), 422)
    problem(client.post(mute, json={"until": "soon"}), 422)
    assert client.post(mute).json()["muted_until"] is not None


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server's computer is set to a time nine hours ahead of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


def test_the_end_of_a_mute_without_a_time_zone_is_utc(client, far_east):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    until = datetime.now(UTC).replace(microsecond=0, tzinfo=None) + timedelta(hours=1)
    answer = client.post(f"/api/v1/alerts/{alert['id']}/mute", json={"until": until.isoformat()})
    assert answer.json()["muted_until"] == f"{until.isoformat()}Z"


def test_what_cannot_be_done_is_a_conflict(client):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    client.post(f"/api/v1/alerts/{alert['id']}/resolve")
    body = problem(client.post(f"/api/v1/alerts/{alert['id']}/mute"), 409)
    assert body["state"] == "resolved"
    problem(client.post(f"/api/v1/alerts/{new_id()}/resolve"), 404)


def test_every_rule_has_a_verdict(client):
    run, packets = healthy()
    play(client, packets)
    verdicts = client.get(f"/api/v1/runs/{run.id}/verdicts").json()["verdicts"]
    assert {v["rule"] for v in verdicts} >= {rule.id for rule in all_rules()}
    assert all({*v} == {"rule", "verdict", "reason"} for v in verdicts)
    assert all(v["reason"] for v in verdicts if v["verdict"] == "not_testable")


def test_audits_come_as_they_were_measured(client):
    run = Training()
    facts = {"layers": [{"name": "a", "shape": [None, 3]}], "gap": float("inf"), "ok": True}
    post(client, run.packet(audits=[Audit("model", 0, facts), Audit("fit", 2, {"epochs": 3})]))
    answer = client.get(f"/api/v1/runs/{run.id}/audits").json()
    assert answer["audits"] == [
        {"name": "model", "step": 0, "facts": {**facts, "gap": "Infinity"}},
        {"name": "fit", "step": 2, "facts": {"epochs": 3}},
    ]
    assert answer["left_out"] == 0
    only = client.get(f"/api/v1/runs/{run.id}/audits?name=fit").json()["audits"]
    assert [audit["name"] for audit in only] == ["fit"]
    for nothing in ("fi", "%00"):
        answer = client.get(f"/api/v1/runs/{run.id}/audits?name={nothing}").json()
        assert answer["audits"] == []


def test_an_answer_with_audits_is_bounded(client, monkeypatch):
    """The first are always there: they say what the run is."""
    monkeypatch.setattr(runs, "MOST_AUDITS", 8)
    run = Training()
    post(client, run.packet(audits=[Audit("epoch", i, {"epoch": i}) for i in range(20)]))
    answer = client.get(f"/api/v1/runs/{run.id}/audits").json()
    assert [a["facts"]["epoch"] for a in answer["audits"]] == [0, 1, 14, 15, 16, 17, 18, 19]
    assert answer["left_out"] == 12
    monkeypatch.setattr(runs, "MOST_AUDIT_BYTES", 60)
    answer = client.get(f"/api/v1/runs/{run.id}/audits").json()
    assert [a["facts"]["epoch"] for a in answer["audits"]] == [0, 16, 17, 18, 19]


# Signals


def test_signals_are_summed_up(client):
    run = Training()
    run.declares(loss__reported="nats")
    play(client, [run.packet(loss__reported=[3.0, 1.0, float("nan"), 2.0])])
    (signal,) = client.get(f"/api/v1/runs/{run.id}/signals").json()["signals"]
    assert signal == {
        "name": "loss/reported",
        "unit": "nats",
        "label": "",
        "first_step": 1,
        "last_step": 4,
        "count": 4,
        "nonfinite": 1,
        "last": 2.0,
        "min": 1.0,
        "max": 3.0,
    }


def data(client: TestClient, run: Training, **query: object) -> dict:
    answer = client.get(f"/api/v1/runs/{run.id}/signals/data", params={"name": "a/b", **query})
    assert answer.status_code == 200
    (signal,) = answer.json()["signals"]
    return signal


def test_few_samples_come_as_they_are(client):
    run = Training()
    values = [0.1, float("nan"), float("inf"), float("-inf"), 5.0]
    post(client, run.packet(**{"a/b": values}))
    signal = data(client, run)
    assert signal["step"] == [1, 2, 3, 4, 5]
    assert signal["value"] == [
        pytest.approx(0.1, abs=1e-7),
        "NaN",
        "Infinity",
        "-Infinity",
        5.0,
    ]


def test_float32_is_written_in_the_digits_it_has(client):
    run = Training()
    post(client, run.packet(**{"a/b": [0.1, 0.2]}))
    text = client.get(f"/api/v1/runs/{run.id}/signals/data?name=a/b").text
    assert "[0.1,0.2]" in text
    assert np.float32(json.loads("0.1")) == np.float32(0.1)


def test_many_samples_are_thinned_without_losing_an_extreme(client):
    run = Training()
    values = np.random.default_rng(1).normal(size=2000)
    values[777] = 99.0
    values[1500] = np.nan
    post(client, run.packet(dtype="f8", **{"a/b": values}))
    signal = data(client, run, points=100)
    columns = [signal[k] for k in ("step", "min", "max", "mean", "first", "last", "count")]
    assert {len(column) for column in columns} == {50}
    assert max(signal["max"]) == 99.0
    assert min(signal["min"]) == np.nanmin(values)
    assert (sum(signal["count"]), sum(signal["nonfinite"])) == (2000, 1)


def test_a_range_of_steps_can_be_asked_for(client):
    run = Training()
    post(client, run.packet(**{"a/b": np.arange(100)}))
    assert data(client, run, first_step=10, last_step=12)["step"] == [10, 11, 12]
    assert data(client, run, first_step=500)["step"] == []


@pytest.mark.parametrize(
    "query",
    [
        "points=10",
        "name=a&points=0",
        "name=a&points=100000",
        "name=a&first_step=5&last_step=4",
        "name=a&first_step=-1",
        "&".join(["name=a"] * 65),
        "&".join(f"name={i}" for i in range(20)) + "&points=20000",
    ],
)
def test_too_much_at_once_is_refused(client, query):
    run = Training()
    post(client, run.packet(**{"a/b": [1.0]}))
    problem(client.get(f"/api/v1/runs/{run.id}/signals/data?{query}"), 422)


def test_long_answers_are_compressed(client):
    run = Training()
    post(client, run.packet(**{"a/b": np.random.default_rng(1).normal(size=2000)}))
    answer = client.get(f"/api/v1/runs/{run.id}/signals/data?name=a/b&points=2000")
    assert answer.headers["Content-Encoding"] == "gzip"


# Behind a proxy


@pytest.mark.parametrize("path", ["/rules", "/sanity/rules", "/sanity", "/livez", "/sanity/livez"])
def test_a_proxy_may_leave_the_path_or_take_it_off(make_app, path):
    with TestClient(make_app(base_url="https://ts.example/sanity")) as client:
        assert client.get(path, headers={"Host": "ts.example"}).status_code == 200
        problem(client.get(f"{path}nity", headers={"Host": "ts.example"}), 404)


def test_tls_that_a_proxy_has_taken_off_is_known_by_the_setting(make_app):
    app = make_app(base_url="https://ts.example", api_keys=KEY)
    with TestClient(app, base_url="http://ts.example", follow_redirects=False) as client:
        secure = client.post("/sign-in", data={"key": KEY}).headers["Set-Cookie"]
        key = {"Authorization": f"Bearer {KEY}"}
        assert 'SanityCallback("https://ts.example"' in client.get("/", headers=key).text
        inside = client.post("http://127.0.0.1:8321/sign-in", data={"key": KEY})
    assert "Secure" in secure
    assert "Secure" not in inside.headers["Set-Cookie"]  # plain HTTP would not get it back


# Who may come in


@pytest.fixture
def locked(make_app: MakeApp) -> Iterator[TestClient]:
    with TestClient(make_app(api_keys="other, " + KEY), base_url="http://127.0.0.1") as client:
        yield client


def test_with_keys_a_key_is_asked_for(locked):
    for answer in (
        post(locked, healthy()[1][0]),
        locked.get("/api/v1/runs"),
        locked.get("/metrics"),
    ):
        assert "Received: no key" in problem(answer, 401)["detail"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_key_is_refused(locked):
    answer = post(locked, healthy()[1][0], Authorization=f"Bearer {KEY}x")
    assert "a wrong key" in problem(answer, 401)["detail"]
    assert KEY not in answer.text


def test_a_right_key_opens(locked):
    run, packets = healthy()
    key = {"Authorization": f"Bearer {KEY}"}
    assert post(locked, packets[0], **key).status_code == 200
    assert locked.get(f"/api/v1/runs/{run.id}", headers=key).status_code == 200
    assert locked.get("/api/v1/runs", headers={"Authorization": "Bearer other"}).status_code == 200


def test_health_needs_no_key(locked):
    assert locked.get("/livez").status_code == 200
    assert locked.get("/readyz").status_code == 200


def test_a_strange_name_is_told_which_setting_to_change(client):
    answer = client.get("/api/v1/runs", headers={"Host": "evil.example"})
    detail = problem(answer, 421)["detail"]
    assert "evil.example" in detail
    assert "TRAINSANITY_ALLOWED_HOSTS" in detail


@pytest.mark.parametrize("host", ["localhost:8321", "127.0.0.1", "[::1]:8321", "192.168.1.5:80"])
def test_names_that_cannot_be_forged_work(client, host):
    assert client.get("/api/v1/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [{"allowed_hosts": "ts.example"}, {"base_url": "https://ts.example"}, {"allowed_hosts": "*"}],
)
def test_names_that_were_allowed_work(make_app, settings):
    with TestClient(make_app(**settings), base_url="http://ts.example") as client:
        assert client.get("/api/v1/runs").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}],
)
def test_a_page_of_another_site_may_not_change_anything(client, headers):
    run, packets = lying()
    play(client, packets)
    (alert,) = client.get(f"/api/v1/runs/{run.id}/alerts").json()["alerts"]
    resolve = f"/api/v1/alerts/{alert['id']}/resolve"
    problem(client.post(resolve, headers=headers), 403)
    assert client.post(resolve, headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_answers_carry_the_headers_that_browsers_heed(client):
    headers = client.get("/api/v1/runs").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "script-src" not in headers["Content-Security-Policy"]


# The server about itself


def test_metrics_tell_what_came_in(client):
    run, packets = healthy()
    play(client, packets)
    post(client, packets[0])
    post(client, Packet(run.id, 99, 1.0))
    lines = client.get("/metrics").text.splitlines()
    assert 'trainsanity_packets_total{what="stored"} 5.0' in lines
    assert 'trainsanity_packets_total{what="duplicate"} 1.0' in lines
    assert 'trainsanity_packets_total{what="conflict"} 1.0' in lines
    assert "trainsanity_points_total 300.0" in lines
    assert 'trainsanity_runs{state="finished"} 1.0' in lines


def test_it_is_not_ready_when_a_thread_has_died(client):
    parts = client.app.state.parts
    parts.threads[1].stop()
    detail = problem(client.get("/readyz"), 503)["detail"]
    assert parts.threads[1].name in detail
    assert client.get("/livez").status_code == 200


def test_operations_have_stable_names(client):
    paths = client.get("/openapi.json").json()["paths"]
    names = {op["operationId"] for path in paths.values() for op in path.values()}
    assert {
        "add_packet",
        "list_runs",
        "get_run",
        "delete_run",
        "list_alerts",
        "list_verdicts",
        "list_audits",
        "list_signals",
        "get_signal_data",
        "get_alert",
        "acknowledge_alert",
        "mute_alert",
        "unmute_alert",
        "resolve_alert",
    } <= names


def test_a_fault_inside_tells_nothing_of_it(make_app):
    app = make_app()

    @app.get("/api/v1/fault")
    def fault() -> None:
        raise ZeroDivisionError("secret")

    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.get("/api/v1/fault")
    assert "its log has the traceback" in problem(answer, 500)["detail"]
    assert "secret" not in answer.text
