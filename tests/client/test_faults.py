"""The ways in which a network or a server can fail: none costs data or holds up the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults import FAULTS
from loopback import (
    LONG,
    Exchange,
    Loopback,
    answers_a_page,
    closed_port,
    fails,
    half_closes,
    refuses_evidence,
    resets,
    right,
    stores_and_resets,
    talks_garbage,
)
from measuring import IMPATIENT, QUICK, measure, spooled, steps_of

from trainsanity.errors import DeliveryError
from trainsanity.sender import Sender
from trainsanity.stream import RunStream
from trainsanity.sync import sync_directory

OpenStream = Callable[..., RunStream]
STEPS = 200
CLOSE_SECONDS = 2.0
SLACK_SECONDS = 4.0  # for a busy machine; any wait for a connection or an answer is longer
# Closes as patiently with a server that has just been in trouble as with any other.
PATIENT = replace(IMPATIENT, last_attempt=LONG)


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_fails_all_the_time_costs_nothing(
    name: str, open_stream: OpenStream, server: Loopback, spool_dir: Path
) -> None:
    """Training and its end take no longer, all is in the spool, and `sync` completes the run."""
    with FAULTS[name]() as url:
        start = time.monotonic()
        stream = open_stream(url, close_timeout=CLOSE_SECONDS)
        measure(stream, 1, STEPS)
        trained = time.monotonic() - start
        report = stream.close("finished")
        closed = time.monotonic() - start - trained
        stream._writer.join(LONG)  # which closes the spool; `close` does not wait for it longer

    assert trained < SLACK_SECONDS
    assert closed < CLOSE_SECONDS + SLACK_SECONDS
    assert not report.delivered
    assert url in report.hint or name in ("black hole", "says nothing", "slow")
    assert report.hint.endswith(f"trainsanity sync {spool_dir} --url {url}")
    path = spool_dir / f"{stream.run_id}.spool"
    assert steps_of(spooled(path)) == list(range(1, STEPS + 1))

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "delivered"
    assert server.ledger.steps(stream.run_id) == list(range(1, STEPS + 1))
    assert server.ledger.packets[stream.run_id][-1].state == "finished"
    assert list(spool_dir.iterdir()) == []


PASSING = {
    "reset": resets,
    "stored, then reset": stores_and_resets,
    "half-closed": half_closes,
    "500": fails,
    "garbage": talks_garbage,
    "a page": answers_a_page,
    "429": lambda exchange: exchange.answer(429, {}, Retry_After="0"),
    "413 for what has samples": refuses_evidence,
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_in_the_middle_of_training_is_overcome(
    fault: Callable[[Exchange], None], open_stream: OpenStream, server: Loopback, spool_dir: Path
) -> None:
    stream = open_stream(server.url, patience=PATIENT)
    measure(stream, 1, 50)
    server.wait_for_requests(2)
    server.behaviour = fault
    measure(stream, 51, 100)
    server.wait_for_requests(len(server.requests) + 2)
    server.behaviour = right
    measure(stream, 101, 150)

    assert stream.close("finished", timeout=LONG).delivered

    packets = server.ledger.packets[stream.run_id]
    assert [p.seq for p in packets] == list(range(len(packets)))
    refused = sum(
        a.facts["points"] for p in packets for a in p.audits if a.name == "packet_refused"
    )
    steps = server.ledger.steps(stream.run_id)
    assert steps == sorted(set(steps))
    assert 2 * len(steps) + refused == 2 * 150
    assert (refused > 0) == (fault is refuses_evidence)


def test_a_server_with_another_database_gets_the_run_from_its_start(
    open_stream: OpenStream, server: Loopback
) -> None:
    stream = open_stream(server.url)
    measure(stream, 1, 50)
    server.wait_for_requests(2)
    server.ledger.forget()
    measure(stream, 51, 100)

    assert stream.close("finished").delivered

    assert server.ledger.steps(stream.run_id) == list(range(1, 101))


def test_a_server_that_fails_only_at_the_end_is_asked_until_the_time_is_up(
    open_stream: OpenStream, server: Loopback
) -> None:
    stream = open_and_wait(open_stream, server)
    server.behaviour = restarts = Restarts()

    assert stream.close("finished").delivered
    assert restarts.fails_left < 0


def test_a_failure_of_the_very_last_packet_is_no_failure_of_before(
    open_stream: OpenStream, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come before the sender knows that it is the last."""
    failed, finish, pause_after = threading.Event(), Sender.finish, Sender._pause_after

    def noted(sender: Sender, error: DeliveryError) -> float:
        pause = pause_after(sender, error)
        failed.set()
        return pause

    def late(sender: Sender, *times: float) -> None:
        assert failed.wait(LONG)
        finish(sender, *times)

    monkeypatch.setattr(Sender, "_pause_after", noted)
    monkeypatch.setattr(Sender, "finish", late)
    stream = open_and_wait(open_stream, server)
    server.behaviour = Restarts()

    assert stream.close("finished").delivered


def open_and_wait(open_stream: OpenStream, server: Loopback) -> RunStream:
    """Nothing is on its way when the end comes."""
    stream = open_stream(server.url, close_timeout=LONG, pace=replace(QUICK, echo_seconds=LONG))
    measure(stream, 1, 50)
    server.wait_for_step(stream.run_id, 50)
    return stream


class Restarts:
    """A server that is away for three requests."""

    fails_left = 3

    def __call__(self, exchange: Exchange) -> None:
        self.fails_left -= 1
        fails(exchange) if self.fails_left >= 0 else right(exchange)


def test_goes_to_the_server_past_the_proxies_of_the_environment(
    open_stream: OpenStream, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_port())
    stream = open_stream(server.url)
    measure(stream, 1, 50)

    assert stream.close("finished", timeout=LONG).delivered
    assert server.ledger.steps(stream.run_id) == list(range(1, 51))
