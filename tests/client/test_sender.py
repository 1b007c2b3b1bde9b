"""Delivery brings each packet once, in order, whatever the server says in between."""

from __future__ import annotations

import contextlib
import random
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme
from loopback import (
    Exchange,
    Loopback,
    answers_a_page,
    closed_port,
    drips,
    fails,
    half_closes,
    refuses_evidence,
    resets,
    right,
    stores_and_resets,
    talks_garbage,
)
from measuring import IMPATIENT, measure, spooled

from trainsanity import identity, wire
from trainsanity.connection import Connection
from trainsanity.delivery import Delivery
from trainsanity.errors import DeliveryError, WrongPacket
from trainsanity.spool import MAGIC, Spool
from trainsanity.stream import RunStream
from trainsanity.wire import Audit, Packet

Serve = Callable[..., Loopback]
OpenStream = Callable[..., RunStream]


@pytest.fixture
def spool(spool_dir: Path) -> Iterator[Spool]:
    """Five packets; the last one ends the run."""
    run_id = identity.new_run_id()
    with contextlib.closing(Spool(spool_dir / f"{run_id}.spool")) as spool:
        for seq in range(5):
            state = "finished" if seq == 4 else "running"
            audit = Audit("x", seq, {"seq": seq})
            spool.append(wire.encode(Packet(run_id, seq, 1.0, seq, state, audits=(audit,))))
        yield spool


def delivery(spool: Spool, server: Loopback, key: str | None = None) -> Delivery:
    return Delivery(spool, Connection(server.url, key))


def send_all(delivery: Delivery) -> None:
    while delivery.spool.pending:
        delivery.send_next()


def stored(server: Loopback, spool: Spool) -> list[int]:
    return [packet.seq for packet in server.ledger.packets.get(spool.run_id, [])]


def test_sends_each_packet_once_over_one_connection(server: Loopback, spool: Spool) -> None:
    send_all(delivery(spool, server, key="ts_key"))

    assert stored(server, spool) == [0, 1, 2, 3, 4]
    assert server.ledger.repeated == 0
    assert len(server.connections) == 1
    method, path, headers = server.requests[0]
    assert (method, path) == ("POST", f"/api/v1/runs/{spool.run_id}/packets?cursor=0")
    assert headers["content-type"] == wire.MEDIA_TYPE
    assert headers["authorization"] == "Bearer ts_key"


def test_asks_only_for_what_is_new(server: Loopback, spool: Spool) -> None:
    server.ledger.alerts = [{"id": "1"}, {"id": "2"}]
    sending = delivery(spool, server)

    assert sending.send_next() == [{"id": "1"}, {"id": "2"}]
    server.ledger.alerts.append({"id": "1", "count": 2})
    assert sending.send_next() == [{"id": "1", "count": 2}]
    assert sending.send_next() == []

    assert sending.alerts == [{"id": "1", "count": 2}, {"id": "2"}]
    assert [path.partition("=")[2] for _, path, _ in server.requests] == ["0", "2", "3"]


def test_does_not_send_twice_what_was_stored_without_an_answer(
    server: Loopback, spool: Spool
) -> None:
    server.behaviour = stores_and_resets
    sending = delivery(spool, server)
    with pytest.raises(DeliveryError, match="cannot be reached"):
        sending.send_next()

    server.behaviour = right
    send_all(sending)

    assert stored(server, spool) == [0, 1, 2, 3, 4]
    assert server.ledger.repeated == 1


def test_starts_again_for_a_server_with_another_database(server: Loopback, spool: Spool) -> None:
    sending = delivery(spool, server)
    for _ in range(3):
        sending.send_next()
    server.ledger.forget()
    send_all(sending)

    assert stored(server, spool) == [0, 1, 2, 3, 4]


def test_goes_on_where_an_older_backup_ends(server: Loopback, spool: Spool) -> None:
    sending = delivery(spool, server)
    for _ in range(4):
        sending.send_next()
    del server.ledger.packets[spool.run_id][2:]
    send_all(sending)

    assert stored(server, spool) == [0, 1, 2, 3, 4]


def test_does_not_mix_with_another_process_of_the_same_run(server: Loopback, spool: Spool) -> None:
    """The server has packets of this run that were never sent from here."""
    for seq in range(3):
        server.ledger.take(spool.run_id, wire.encode(Packet(spool.run_id, seq, 9.0)), 0)

    with pytest.raises(DeliveryError, match="Leave run_id out") as caught:
        send_all(delivery(spool, server))

    assert caught.value.permanent
    assert f"Received: run_id='{spool.run_id}', of which it has 3 packets" in str(caught.value)
    assert stored(server, spool) == [0, 1, 2]


def test_skips_what_an_earlier_process_has_delivered(
    server: Loopback, spool: Spool, spool_dir: Path
) -> None:
    """It was killed after the server had answered and before it could note that."""
    send_all(delivery(spool, server))
    path = spool.path
    spool.close()
    path.with_suffix(".ack").unlink()

    with contextlib.closing(Spool(path)) as again:
        send_all(delivery(again, server))

    assert stored(server, spool) == [0, 1, 2, 3, 4]


def test_gives_up_on_a_server_that_contradicts_itself(serve: Serve, spool: Spool) -> None:
    def wants_the_same_again(exchange: Exchange) -> None:
        exchange.answer(409, {"expected_seq": wire.decode(exchange.body).seq})

    with pytest.raises(DeliveryError, match="contradicts itself"):
        delivery(spool, serve(wants_the_same_again)).send_next()


def test_does_not_run_in_circles(serve: Serve, spool: Spool) -> None:
    """As before two servers behind one address that do not share their database."""

    def forgets(exchange: Exchange) -> None:
        right(exchange)
        if wire.decode(exchange.body).seq == 2:
            exchange.server.ledger.forget()

    server = serve(forgets)
    sending = delivery(spool, server)
    with pytest.raises(DeliveryError, match="contradicts itself"):
        send_all(sending)
    server.behaviour = right
    send_all(sending)

    assert stored(server, spool) == [0, 1, 2, 3, 4]


# packets that are refused


def test_sets_a_refused_packet_aside_and_goes_on(
    serve: Serve, open_stream: OpenStream, spool_dir: Path
) -> None:
    server = serve(refuses_evidence)
    stream = open_stream(server.url)
    stream.audit("fit", 0, {})
    measure(stream, 1, 10)

    report = stream.close("finished")

    assert report.delivered
    packets = server.ledger.packets[stream.run_id]
    assert packets[-1].state == "finished"
    refused = [a.facts for p in packets for a in p.audits if a.name == "packet_refused"]
    assert sum(facts["points"] for facts in refused) == 20
    assert "413: too large" in refused[0]["answer"]
    kept = spool_dir / f"{stream.run_id}.rejected"
    assert list(spool_dir.iterdir()) == [kept]
    assert kept.read_bytes().startswith(MAGIC)
    kept = kept.rename(spool_dir / f"{stream.run_id}.spool")
    assert sum(p.points for p in spooled(kept)) == 20


def test_stops_at_a_server_that_takes_nothing(serve: Serve, spool: Spool) -> None:
    """Then the fault is no packet's: setting all of them aside would help nobody."""
    server = serve(lambda exchange: exchange.answer(422, {"detail": "version 1 only"}))
    sending = delivery(spool, server)
    for _ in range(3):
        with pytest.raises(DeliveryError, match="422: version 1 only") as caught:
            sending.send_next()
        assert caught.value.permanent

    assert spool.pending == 5
    kept = spool.path.with_suffix(".rejected").read_bytes()
    assert kept.count(spool.run_id.encode()) == 2  # the first line and packet 0


def test_replaces_a_packet_that_the_disk_has_changed(server: Loopback, spool: Spool) -> None:
    data = spool.path.read_bytes()
    assert data.count(b"\xa3seq\x02") == 2  # in packet 2 and in its audit
    at = data.index(b"\xa3seq\x02")
    with open(spool.path, "r+b") as file:
        file.seek(at)
        file.write(b"\xa3seq\x07")
    send_all(delivery(spool, server))

    assert stored(server, spool) == [0, 1, 2, 3, 4]
    names = [[a.name for a in p.audits] for p in server.ledger.packets[spool.run_id]]
    assert names == [["x"], ["x"], ["packet_damaged"], ["x"], ["x"]]


# refusals of the server


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 415, 421])
def test_hands_on_the_servers_words(serve: Serve, spool: Spool, status: int) -> None:
    server = serve(lambda exchange: exchange.answer(status, {"detail": "ask Ada for a key"}))
    with pytest.raises(DeliveryError, match=f"{server.url} answered {status}: ask Ada") as caught:
        delivery(spool, server).send_next()
    assert caught.value.permanent
    assert caught.value.status == status


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_tries_again_later_when_the_server_is_in_trouble(
    serve: Serve, spool: Spool, status: int
) -> None:
    server = serve(lambda exchange: exchange.answer(status, {}, Retry_After="7"))
    with pytest.raises(DeliveryError) as caught:
        delivery(spool, server).send_next()
    assert not caught.value.permanent
    assert caught.value.retry_after == 7


def test_understands_a_date_to_retry_after(serve: Serve, spool: Spool) -> None:
    before = time.time()
    date = int(before) + 100
    server = serve(
        lambda exchange: exchange.answer(503, {}, Retry_After=formatdate(date, usegmt=True))
    )
    with pytest.raises(DeliveryError) as caught:
        delivery(spool, server).send_next()
    assert date - time.time() <= caught.value.retry_after <= date - before


@pytest.mark.parametrize("value", ["soon", "", "-5"])
def test_ignores_a_retry_after_that_says_nothing(serve: Serve, spool: Spool, value: str) -> None:
    server = serve(lambda exchange: exchange.answer(503, {}, Retry_After=value))
    with pytest.raises(DeliveryError) as caught:
        delivery(spool, server).send_next()
    assert caught.value.retry_after is None


def test_follows_no_redirect(serve: Serve, spool: Spool) -> None:
    other = serve()
    target = f"{other.url}/elsewhere"
    server = serve(lambda exchange: exchange.answer(307, {}, Location=target))
    with pytest.raises(DeliveryError, match=f"redirects to {target}") as caught:
        delivery(spool, server, key="ts_key").send_next()
    assert caught.value.permanent
    assert other.requests == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "no JSON object"),
        ({}, "no trainsanity server"),
        ({"next_seq": "x", "cursor": 0, "alerts": [], "settled": 1, "run_url": ""}, "no trainsan"),
        (
            {"next_seq": 0, "cursor": 0, "alerts": [], "settled": False, "run_url": ""},
            "wants packet 0",
        ),
        (
            {"next_seq": 9, "cursor": 0, "alerts": [], "settled": False, "run_url": ""},
            "wants packet 9",
        ),
    ],
)
def test_believes_no_nonsense(serve: Serve, spool: Spool, body: object, words: str) -> None:
    server = serve(lambda exchange: exchange.answer(200, body))
    with pytest.raises(DeliveryError, match=words):
        delivery(spool, server).send_next()
    assert spool.pending == 5


def test_ignores_an_expected_number_that_is_none(serve: Serve, spool: Spool) -> None:
    server = serve(lambda exchange: exchange.answer(409, {"expected_seq": "three"}))
    with pytest.raises(DeliveryError) as caught:
        delivery(spool, server).send_next()
    assert not isinstance(caught.value, WrongPacket)


# the network


@pytest.mark.parametrize("fault", [resets, half_closes, talks_garbage, answers_a_page, fails])
def test_survives_faults_of_a_moment(
    serve: Serve, spool: Spool, fault: Callable[..., None]
) -> None:
    server = serve(fault)
    sending = delivery(spool, server)
    with pytest.raises(DeliveryError):
        sending.send_next()
    server.behaviour = right
    send_all(sending)

    assert stored(server, spool) == [0, 1, 2, 3, 4]


def test_waits_for_an_answer_no_longer_than_it_was_told(serve: Serve, spool: Spool) -> None:
    before = time.monotonic()
    with pytest.raises(DeliveryError, match="does not end"):
        delivery(spool, serve(drips)).send_next(seconds=0.5)
    assert time.monotonic() - before < 5


def test_says_plainly_that_nobody_listens(spool: Spool) -> None:
    url = closed_port()
    with pytest.raises(DeliveryError) as caught:
        Delivery(spool, Connection(url)).send_next()
    assert str(caught.value) == f"{url} cannot be reached (Connection refused)"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(serve: Serve, authority: trustme.CA) -> Loopback:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return serve(tls=context)


def test_sends_nothing_to_a_server_that_cannot_prove_who_it_is(
    tls_server: Loopback, spool: Spool
) -> None:
    with pytest.raises(DeliveryError, match=r"(?i)certificate verify failed"):
        delivery(spool, tls_server, key="ts_key").send_next()
    assert tls_server.requests == []


def test_trusts_the_authorities_of_the_system(
    tls_server: Loopback,
    spool: Spool,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    send_all(delivery(spool, tls_server))
    assert stored(tls_server, spool) == [0, 1, 2, 3, 4]


# the thread


def test_recovers_without_being_asked(
    serve: Serve, open_stream: OpenStream, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(fails)
    before = random.getstate()
    stream = open_stream(server.url)
    measure(stream, 1, 10)
    server.wait_for_requests(2 * IMPATIENT.tell_after)
    assert random.getstate() == before, "training draws from Python's generator too"
    server.behaviour = right
    measure(stream, 11, 20)
    server.wait_for_requests(len(server.requests) + 2)

    assert stream.close("finished").delivered

    assert server.ledger.steps(stream.run_id) == list(range(1, 21))
    assert caplog.text.count("500: out of order") == 1  # said once, not once an attempt
    assert "Training goes on" in caplog.text


def test_asks_seldom_where_the_answer_is_no(serve: Serve, open_stream: OpenStream) -> None:
    server = serve(lambda exchange: exchange.answer(401, {"detail": "which key?"}))
    stream = open_stream(server.url, api_key="wrong")
    server.wait_for_requests(1)
    start, before = time.monotonic(), len(server.requests)
    measure(stream, 1, 2000)  # many packets, each of which wakes the sender
    asked, elapsed = len(server.requests) - before, time.monotonic() - start

    assert asked <= elapsed / IMPATIENT.refused + 2


def test_takes_the_right_key_when_it_is_made_right_on_the_server(
    serve: Serve, open_stream: OpenStream
) -> None:
    server = serve(lambda exchange: exchange.answer(401, {"detail": "which key?"}))
    stream = open_stream(server.url, api_key="new")
    measure(stream, 1, 10)
    server.wait_for_requests(2)
    server.behaviour = right
    server.wait_for_requests(len(server.requests) + 2)

    assert stream.close("finished").delivered


def test_waits_until_the_run_is_judged(serve: Serve, open_stream: OpenStream) -> None:
    """The answer to the last packet may come before every rule has spoken."""
    looks = 0

    def judges_slowly(exchange: Exchange) -> None:
        nonlocal looks
        status, body = exchange.proper()
        if "settled" in body:
            looks += exchange.method == "GET"
            body["settled"] = looks >= 3
        if looks >= 3:
            exchange.server.ledger.alerts = [{"id": "late"}]
        exchange.answer(status, body)

    stream = open_stream(serve(judges_slowly).url)
    report = stream.close("finished")

    assert report.settled
    assert [alert["id"] for alert in stream.alerts] == ["late"]


def test_tells_that_rules_have_not_spoken_in_time(serve: Serve, open_stream: OpenStream) -> None:
    def never_judges(exchange: Exchange) -> None:
        status, body = exchange.proper()
        exchange.answer(status, {**body, "settled": False})

    stream = open_stream(serve(never_judges).url, close_timeout=2.0)
    report = stream.close("finished")

    assert report.delivered
    assert not report.settled


def test_delivers_although_the_answers_about_the_run_fail(
    serve: Serve, open_stream: OpenStream
) -> None:
    server = serve(lambda e: right(e) if e.method == "POST" else e.answer(403, {"detail": "no"}))
    stream = open_stream(server.url)
    measure(stream, 1, 10)
    assert stream.close("finished").delivered
