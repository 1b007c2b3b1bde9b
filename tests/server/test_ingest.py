"""Packets come in: once each, in order, durable before they are acknowledged."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from cast import Training, healthy
from sqlalchemy import event, func, select
from stage import PATIENCE_SECONDS, Stage, eventually

from trainsanity import wire
from trainsanity.wire import Audit
from trainsanity_server.errors import ConflictError, GoneError, MalformedError, UnavailableError
from trainsanity_server.live import Event
from trainsanity_server.services import ingest
from trainsanity_server.services.ingest import arrival_of
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import AuditRow, PacketRow, RunRow


def test_the_first_packet_makes_the_run(stage):
    run, packets = healthy(1)
    receipt = stage.send(packets[0])
    assert (receipt.next_seq, receipt.cursor, receipt.settled) == (1, 0, False)
    stored = stage.runs.get(run.id)
    assert (stored.project, stored.name, stored.tags) == ("nlp", "healthy", ["test"])
    assert (stored.keras_version, stored.backend) == ("3.15.1", "tensorflow")
    assert (stored.steps, stored.points, stored.state) == (25, 75, "running")
    assert stored.config == {"units": 8}


def test_how_long_a_run_takes_is_told_by_its_own_clock(stage):
    """The server's may be far from it, as here."""
    run, packets = healthy(4)
    stage.send_all(packets[:3])
    assert stage.runs.get(run.id).seconds == packets[2].time - packets[0].time
    stage.send_all(packets[3:])
    ended = stage.runs.get(run.id)
    assert ended.seconds == ended.ended_at - ended.started_at


def test_a_packet_sent_again_changes_nothing(stage):
    run, packets = healthy(3)
    stage.send_all(packets)
    before = stage.runs.get(run.id)
    assert stage.send(packets[1]).next_seq == 4
    assert stage.runs.get(run.id) == before


def test_a_packet_that_skips_one_is_told_which_is_expected(stage):
    _, packets = healthy(3)
    stage.send(packets[0])
    with pytest.raises(ConflictError) as caught:
        stage.send(packets[2])
    assert caught.value.members == {"expected_seq": 1}
    assert "Received: seq=2" in caught.value.detail


def test_an_unknown_run_must_begin_at_the_beginning(stage):
    """So a client notices that the server has another database, and sends everything again."""
    run, packets = healthy(3)
    with pytest.raises(ConflictError, match="is not known here") as caught:
        stage.send(packets[2])
    assert caught.value.members == {"expected_seq": 0}
    assert stage.runs.page().runs == []
    stage.send_all(packets)
    assert stage.runs.get(run.id).state == "finished"


def test_other_content_under_a_number_that_is_taken_is_refused(stage):
    _, packets = healthy(2)
    stage.send_all(packets)
    with pytest.raises(ConflictError, match="two processes write the same run") as caught:
        stage.send(replace(packets[1], step=7))
    assert caught.value.members == {"expected_seq": 3}


def test_what_was_packed_into_chunks_is_still_recognised(stage):
    _, packets = healthy(3)
    stage.send_all(packets)
    stage.judge_all()
    assert stage.send(packets[1]).next_seq == 4
    with pytest.raises(ConflictError):
        stage.send(replace(packets[1], step=7))


def test_the_end_is_stored(stage):
    run, packets = healthy(1)
    stage.send_all(packets)
    stored = stage.runs.get(run.id)
    assert stored.state == "finished"
    assert stored.ended_at == packets[-1].time


def test_a_run_that_ended_may_go_on(stage):
    """One process may call `fit` twice under one id."""
    run, packets = healthy(1)
    stage.send_all(packets)
    stage.send(run.packet(loss__reported=[0.1]))
    stored = stage.runs.get(run.id)
    assert (stored.state, stored.ended_at) == ("running", None)


def test_the_environment_comes_as_an_audit(stage):
    run = Training()
    facts = {"python": "3.11.7", "loss": float("nan")}
    stage.send(run.packet(audits=[Audit("environment", 0, facts)]))
    assert stage.runs.get(run.id).environment["python"] == "3.11.7"
    (audit,) = stage.runs.audits(run.id)
    assert np.isnan(audit.facts["loss"])


def test_text_that_a_database_cannot_hold_is_kept_as_far_as_it_can(stage):
    run = Training("a\0b")
    stage.send(run.packet(audits=[Audit("model", 0, {"name": "a\0b"})]))
    assert stage.runs.get(run.id).name == "a\ufffdb"
    assert stage.runs.audits(run.id)[0].facts == {"name": "a\0b"}


def test_watchers_are_told_after_the_packet_is_stored(stage):
    run, packets = healthy(1)
    stage.send_all(packets)
    assert stage.hub.published == [
        Event("points", run.id),
        Event("run", run.id),
        Event("points", run.id),
        Event("run", run.id),
    ]


def test_many_packets_share_a_commit(database: Database):
    """While one COMMIT runs, what comes in meanwhile waits for the next one, together."""
    entered, go_on = threading.Event(), threading.Event()
    commits = []

    @event.listens_for(database.engine, "commit")
    def hold(connection: object) -> None:
        commits.append(1)
        if len(commits) == 1:
            entered.set()
            assert go_on.wait(PATIENCE_SECONDS)

    trainings = [Training() for _ in range(20)]
    with Stage(database) as stage:
        arrivals = [
            arrival_of(wire.encode(t.packet(loss__reported=[1.0])), t.id) for t in trainings
        ]
        first = stage.ingest.submit(arrivals[0], 0)
        assert entered.wait(PATIENCE_SECONDS)
        others = [stage.ingest.submit(arrival, 0) for arrival in arrivals[1:]]
        go_on.set()
        for answer in [first, *others]:
            assert answer.result(PATIENCE_SECONDS).next_seq == 1
    assert len(commits) == 2


def test_a_packet_is_counted_before_it_is_answered(database: Database):
    go_on = threading.Event()

    @event.listens_for(database.engine, "commit")
    def hold(connection: object) -> None:
        assert go_on.wait(PATIENCE_SECONDS)

    counted: list[float] = []
    training = Training()
    with Stage(database) as stage:
        stored = stage.metrics.packets.labels("stored")
        arrival = arrival_of(wire.encode(training.packet(loss__reported=[1.0])), training.id)
        answer = stage.ingest.submit(arrival, 0)
        answer.add_done_callback(lambda _: counted.append(stored._value.get()))
        go_on.set()
        answer.result(PATIENCE_SECONDS)
    assert counted == [1.0]


def test_one_bad_packet_does_not_harm_those_that_share_its_commit(stage):
    run, packets = healthy(2)
    other, _ = healthy(1)
    futures = [
        stage.ingest.submit(arrival_of(wire.encode(p), p.run_id), 0)
        for p in (
            packets[0],
            replace(packets[1], seq=5),
            replace(packets[1], run_id=other.id),
            packets[1],
        )
    ]
    assert futures[0].result(PATIENCE_SECONDS).next_seq == 1
    assert isinstance(futures[1].exception(PATIENCE_SECONDS), ConflictError)
    assert isinstance(futures[2].exception(PATIENCE_SECONDS), ConflictError)
    assert futures[3].result(PATIENCE_SECONDS).next_seq == 2
    assert stage.runs.get(run.id).steps == 50


def test_a_deleted_run_takes_no_packets(stage):
    run, packets = healthy(2)
    stage.send(packets[0])
    stage.deletion.delete(run.id)
    with pytest.raises(GoneError, match="has been deleted"):
        stage.send(packets[1])


def test_a_database_that_cannot_be_written_is_said_to_be_so(stage):
    _, packets = healthy(1)

    @event.listens_for(stage.database.engine, "before_cursor_execute")
    def fail(conn, cursor, statement, parameters, context, executemany):
        if statement.startswith("INSERT INTO packets"):
            cursor.execute("INSERT INTO no_such_table VALUES (1)")

    with pytest.raises(UnavailableError, match="cannot be written now") as caught:
        stage.send(packets[0])
    assert caught.value.members["retry_after"] > 0
    event.remove(stage.database.engine, "before_cursor_execute", fail)
    assert stage.send(packets[0]).next_seq == 1


def test_a_packet_the_database_refuses_does_not_harm_those_that_share_its_commit(stage):
    """As a text would that a column cannot hold."""
    good, bad = Training(), Training()

    @event.listens_for(stage.database.engine, "before_cursor_execute")
    def fail(conn, cursor, statement, parameters, context, executemany):
        if statement.startswith("INSERT INTO packets") and bad.id.replace("-", "") in (
            repr(parameters).replace("-", "")
        ):
            cursor.execute("INSERT INTO no_such_table VALUES (1)")

    arrivals = [arrival_of(wire.encode(run.packet(a=[1.0])), run.id) for run in (bad, good)]
    waiting = [ingest._Waiting(arrival, 0, Future()) for arrival in arrivals]
    stage.ingest._store(waiting)
    assert isinstance(waiting[0].answer.exception(PATIENCE_SECONDS), UnavailableError)
    assert waiting[1].answer.result(PATIENCE_SECONDS).next_seq == 1
    event.remove(stage.database.engine, "before_cursor_execute", fail)


def test_whoever_has_gone_does_not_harm_the_others(stage):
    gone, here = Training(), Training()
    arrivals = [arrival_of(wire.encode(run.packet(a=[1.0])), run.id) for run in (gone, here)]
    waiting = [ingest._Waiting(arrival, 0, Future()) for arrival in arrivals]
    waiting[0].answer.cancel()
    stage.ingest._store(waiting)
    assert waiting[1].answer.result(PATIENCE_SECONDS).next_seq == 1
    assert [run.id for run in stage.runs.page().runs] == [here.id]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_a_fault_of_ours_nobody_waits_for_ever(stage, monkeypatch):
    _, packets = healthy(2)
    fault = ZeroDivisionError("a fault")

    def store(*args, **kwargs):
        raise fault

    monkeypatch.setattr(ingest.packets, "store", store)
    with pytest.raises(ZeroDivisionError):
        stage.send(packets[0])
    eventually(lambda: not stage.ingest.is_alive)
    with pytest.raises(UnavailableError, match="restart it"):
        stage.send(packets[0])


def test_what_is_acknowledged_is_there_for_another_connection(stage, database_url):
    run, packets = healthy(2)
    stage.send_all(packets)
    other = Database(database_url)
    with other.read() as session:
        assert session.scalar(select(func.count()).select_from(PacketRow)) == 3
        assert session.scalar(select(RunRow.next_seq).where(RunRow.id == run.id)) == 3
        assert session.scalar(select(func.count()).select_from(AuditRow)) == 0
    other.close()


# What is refused


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a msgpack map"),
        (b"hello", "Received"),
        (b"\xc1" * 40, "not a msgpack map"),
        (b"\x81\xa1v\x02", "version 1"),
    ],
)
def test_what_is_no_packet_is_refused(body, words):
    with pytest.raises(MalformedError, match=words):
        arrival_of(body, Training().id)


def test_a_packet_of_another_run_is_refused():
    run, packets = healthy(1)
    with pytest.raises(MalformedError, match=run.id):
        arrival_of(wire.encode(packets[0]), Training().id)


def nested(depth: int) -> dict:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time": -1.0}, "time must be within"),
        ({"time": 1e300}, "time must be within"),
        ({"silent_after": -5.0}, "silent_after must be within"),
        ({"run": {"tags": "nlp"}}, "run.tags is of the wrong type"),
        ({"run": {"name": 7}}, "run.name is of the wrong type. Received: '7'"),
        ({"run": {"config": {"a": b"secret"}}}, "Received: a bytes"),
        ({"run": {"config": {b"a": 1}}}, "keys of run must be text"),
        ({"run": {"started_at": float("nan")}}, "run.started_at must be within"),
        ({"run": {"config": nested(40)}}, "may be nested 32 deep"),
        ({"audits": [Audit("model", 0, {"a": [b"x"]})]}, "facts of audit model"),
    ],
)
def test_a_packet_that_cannot_be_stored_is_refused(changes, words):
    packet = replace(Training().packet(), **changes)
    with pytest.raises(MalformedError, match=words):
        arrival_of(wire.encode(packet), packet.run_id)
