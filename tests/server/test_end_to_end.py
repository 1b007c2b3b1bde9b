"""A real server on a real port: packets in, alerts out, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time

import httpx2
import pytest
from cast import Training, falling, healthy
from serving import PACKETS, Server, serving
from stage import PATIENCE_SECONDS, eventually

from trainsanity import wire
from trainsanity.wire import Packet

KILLS = 6


def contradiction(run: Training, state: str = "running") -> Packet:
    """The learning rate that is shown is not the one that is used."""
    columns = {
        "learning_rate/declared": [1e-3] * 25,
        "learning_rate/applied": [1e-4] * 25,
        "loss/reported": falling(run.step + 1),
    }
    return run.packet(state=state, dtype="f8", **columns)


def test_a_run_is_judged_by_the_real_rules_within_a_second(database_url):
    run = Training()
    with serving(database_url) as server, httpx2.Client(timeout=PATIENCE_SECONDS) as client:
        assert server.post(client, contradiction(run)).status_code == 200
        begin = time.monotonic()
        eventually(lambda: server.get(f"/runs/{run.id}/alerts")["alerts"] != [])
        assert time.monotonic() - begin < PATIENCE_SECONDS / 2  # the machine may be busy
        (alert,) = server.get(f"/runs/{run.id}/alerts")["alerts"]
        assert (alert["rule"], alert["severity"]) == ("lr-effective-mismatch", "critical")
        server.post(client, run.packet(state="finished"))
        eventually(lambda: server.get(f"/runs/{run.id}")["settled"])


def test_the_stream_tells_of_a_new_alert(sqlite_url):
    run = Training()
    with (
        serving(sqlite_url) as server,
        httpx2.Client(timeout=PATIENCE_SECONDS) as client,
        client.stream("GET", f"{server.address}/live?watch={run.id}") as stream,
    ):
        lines = stream.iter_lines()
        assert any("ready" in line for line in lines)
        with httpx2.Client(timeout=PATIENCE_SECONDS) as other:
            server.post(other, contradiction(run))
        events = (json.loads(line[5:]) for line in lines if line.startswith("data:"))
        assert any("alerts" in event.get("kinds", ()) for event in events)


def test_what_was_acknowledged_survives_a_kill(database_url):
    """Kill -9 at any moment: nothing is lost, nothing is judged twice."""
    run = Training()
    acknowledged = 0
    pending: list[Packet] = []
    for round_number in range(KILLS):
        with serving(database_url) as server:
            sending = threading.Event()

            def kill(server: Server = server, sending: threading.Event = sending) -> None:
                sending.wait(PATIENCE_SECONDS)
                server.process.kill()

            killer = threading.Thread(target=kill)
            killer.start()
            with (
                httpx2.Client(timeout=PATIENCE_SECONDS) as client,
                contextlib.suppress(httpx2.HTTPError),
            ):
                for number in range(1000):
                    if not pending:
                        pending.append(contradiction(run))
                    if number == 3 + 7 * round_number:
                        sending.set()
                    answer = server.post(client, pending[0])
                    assert answer.status_code == 200
                    assert answer.json()["next_seq"] == pending[0].seq + 1
                    acknowledged = pending.pop().seq + 1
            sending.set()
            killer.join()
    with serving(database_url) as server, httpx2.Client(timeout=PATIENCE_SECONDS) as client:
        for packet in [*pending, run.packet(state="finished")]:
            assert server.post(client, packet).status_code == 200
        eventually(lambda: server.get(f"/runs/{run.id}")["settled"])
        assert acknowledged > 3 * KILLS
        shown = server.get(f"/runs/{run.id}")
        assert shown["steps"] == run.step
        data = server.get(f"/runs/{run.id}/signals/data?name=loss/reported&points=20000")
        steps = data["signals"][0]["step"]
        assert steps == list(range(1, run.step + 1))
        (alert,) = server.get(f"/runs/{run.id}/alerts")["alerts"]
        assert (alert["first_step"], alert["last_step"]) == (1, run.step)
        assert alert["count"] == run.step


def test_a_server_with_another_database_gets_the_whole_run(sqlite_url, tmp_path):
    run, packets = healthy(3)
    with httpx2.Client(timeout=PATIENCE_SECONDS) as client:
        with serving(sqlite_url) as server:
            for packet in packets[:2]:
                server.post(client, packet)
        with serving(f"sqlite:///{tmp_path / 'other.db'}") as server:
            answer = server.post(client, packets[2])
            assert (answer.status_code, answer.json()["expected_seq"]) == (409, 0)
            for packet in packets:
                assert server.post(client, packet).status_code == 200
            assert server.get(f"/runs/{run.id}")["steps"] == 75


def test_two_hundred_open_pages_hold_no_connection(database_url):
    """Complaint of many live dashboards: open pages eat the database's pool."""
    run = Training()

    async def play(address: str) -> None:
        def now(metrics: str, name: str) -> float:
            return next(float(m.split()[-1]) for m in metrics.splitlines() if m.startswith(name))

        limits = httpx2.Limits(max_connections=None)
        async with (
            httpx2.AsyncClient(timeout=60.0, limits=limits) as client,
            contextlib.AsyncExitStack() as streams,
        ):
            for _ in range(200):
                stream = client.stream("GET", f"{address}/live?watch=*")
                answer = await streams.enter_async_context(stream)
                assert answer.status_code == 200
            path = f"{address}/api/v1/runs/{run.id}/packets"
            body = wire.encode(contradiction(run))
            assert (await client.post(path, content=body, headers=PACKETS)).status_code == 200
            in_use = math.inf
            while in_use >= 4:  # until the server's own threads have judged the packet
                metrics = (await client.get(f"{address}/metrics")).text
                assert now(metrics, 'trainsanity_streams{kind="sse"}') == 200.0
                in_use = now(metrics, "trainsanity_database_connections{")

    with serving(database_url) as server:
        asyncio.run(asyncio.wait_for(play(server.address), 100))


@pytest.mark.parametrize("runs", [12])
def test_many_runs_and_readers_at_once_find_no_locked_database(sqlite_url, runs):
    failures: list[str] = []
    ended = threading.Event()

    def train() -> None:
        run = Training()
        with httpx2.Client(timeout=60.0) as client:
            for _ in range(25):
                answer = server.post(client, contradiction(run))
                if answer.status_code != 200:
                    failures.append(answer.text)

    def look() -> None:
        with httpx2.Client(timeout=60.0) as client:
            while not ended.is_set():
                answer = client.get(f"{server.address}/api/v1/runs")
                if answer.status_code != 200:
                    failures.append(answer.text)

    with serving(sqlite_url) as server:
        watchers = [threading.Thread(target=look) for _ in range(2)]
        trainings = [threading.Thread(target=train) for _ in range(runs)]
        for thread in [*watchers, *trainings]:
            thread.start()
        for thread in trainings:
            thread.join()
        ended.set()
        for thread in watchers:
            thread.join()
        shown = server.get("/runs")["runs"]
    assert failures == []
    assert {run["steps"] for run in shown} == {625}
    assert len(shown) == runs
