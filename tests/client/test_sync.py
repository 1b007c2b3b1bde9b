"""`sync_directory` completes the runs that earlier processes left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import trainsanity
from loopback import Loopback, closed_port, fails, right
from measuring import measure, spooled, steps_of

from trainsanity import identity, wire
from trainsanity.stream import RunStream
from trainsanity.sync import RETRIES, sync_directory
from trainsanity.wire import Packet

Serve = Callable[..., Loopback]
OpenStream = Callable[..., RunStream]


def leave(open_stream: OpenStream, last: int = 50) -> str:
    """A run that ended offline."""
    stream = open_stream("offline")
    measure(stream, 1, last)
    stream.close("finished")
    return stream.run_id


def kill_one(spool_dir: Path, last: int = 50, host: str = identity.host()) -> str:
    """A run whose process was killed before it could say anything of its end."""
    code = f"""
import os, signal
from measuring import QUICK, measure
from trainsanity import identity, wire, stream as stream_module
from trainsanity.settings import Settings
from trainsanity.spool import Spool
class Killed(Spool):
    def append(self, payload):
        super().append(payload)
        blocks = wire.decode(payload).blocks
        if blocks and blocks[-1].steps[-1] == {last}:
            os.kill(os.getpid(), signal.SIGKILL)
identity.host = lambda: {host!r}
settings = Settings.resolve("offline", spool_dir={str(spool_dir)!r})
stream_module.Spool = Killed
stream = stream_module.RunStream(settings, identity.new_run_id(), {{}}, pace=QUICK)
measure(stream, 1, {last})
signal.pause()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, timeout=60)
    assert done.returncode == -signal.SIGKILL
    return next(iter(spool_dir.glob("*.spool"))).stem


def test_delivers_runs_of_the_past_and_cleans_up(
    open_stream: OpenStream, server: Loopback, spool_dir: Path
) -> None:
    run_ids = sorted(leave(open_stream) for _ in range(3))

    results = sync_directory(spool_dir, server.url)

    assert [result.run_id for result in results] == run_ids
    for result in results:
        assert result.outcome == "delivered"
        assert result.pending == 0
        assert result.sent == len(server.ledger.packets[result.run_id])
        assert result.run_url == f"http://team.example/runs/{result.run_id}"
        assert not result.interrupted
        assert server.ledger.steps(result.run_id) == list(range(1, 51))
    assert list(spool_dir.iterdir()) == []


def test_has_nothing_to_do_twice(
    open_stream: OpenStream, server: Loopback, spool_dir: Path
) -> None:
    run_id = leave(open_stream)
    sync_directory(spool_dir, server.url, keep=True)
    before = len(server.requests)

    (result,) = sync_directory(spool_dir, server.url, keep=True)

    assert (result.outcome, result.sent) == ("delivered", 0)
    assert len(server.requests) == before
    assert steps_of(spooled(result.path)) == server.ledger.steps(run_id)


def test_has_nothing_to_do_in_an_empty_folder(server: Loopback, tmp_path: Path) -> None:
    assert sync_directory(tmp_path, server.url) == []
    assert sync_directory(tmp_path / "missing", server.url) == []


def test_marks_a_run_whose_process_is_gone(server: Loopback, spool_dir: Path) -> None:
    run_id = kill_one(spool_dir)

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "delivered"
    assert result.interrupted
    *_, before, last = server.ledger.packets[run_id]
    assert (before.state, last.state) == ("running", "failed")
    assert last.time == before.time
    assert [audit.name for audit in last.audits] == ["interrupted"]
    assert server.ledger.steps(run_id) == list(range(1, 51))
    assert list(spool_dir.iterdir()) == []


def test_marks_it_once_when_the_server_goes_away_in_between(serve: Serve, spool_dir: Path) -> None:
    run_id = kill_one(spool_dir)
    packets = len(spooled(spool_dir / f"{run_id}.spool"))
    server = serve(lambda e: right(e) if wire.decode(e.body).seq < packets else fails(e))

    (result,) = sync_directory(spool_dir, server.url, sleep=lambda _: None)
    assert (result.outcome, result.pending) == ("waiting", 1)
    server.behaviour = right
    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "delivered"
    assert [a.name for a in server.ledger.audits(run_id)] == ["interrupted"]


def test_leaves_a_run_alone_that_may_go_on_elsewhere(server: Loopback, spool_dir: Path) -> None:
    """A folder shared by several machines: of another host's processes nothing is known."""
    run_id = kill_one(spool_dir, host="elsewhere")

    (result,) = sync_directory(spool_dir, server.url)

    assert (result.outcome, result.interrupted) == ("delivered", False)
    assert server.ledger.packets[run_id][-1].state == "running"
    assert result.path.exists()


def test_leaves_a_run_alone_that_is_being_written(
    open_stream: OpenStream, server: Loopback, spool_dir: Path
) -> None:
    stream = open_stream("offline")
    measure(stream, 1, 10)

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "busy"
    assert server.requests == []
    stream.close("finished")
    assert steps_of(spooled(result.path)) == list(range(1, 11))


def test_cuts_a_torn_record_and_sends_the_rest(server: Loopback, spool_dir: Path) -> None:
    run_id = kill_one(spool_dir)
    with open(spool_dir / f"{run_id}.spool", "ab") as file:
        file.write(b"\xff\x01\x00\x00torn")

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "delivered"
    assert server.ledger.steps(run_id) == list(range(1, 51))


def test_ends_well_where_a_power_cut_took_what_the_server_has(
    server: Loopback, spool_dir: Path
) -> None:
    run_id = kill_one(spool_dir)
    path = spool_dir / f"{run_id}.spool"
    packets = spooled(path)
    for packet in [*packets, Packet(run_id, len(packets), 9.0, 51)]:
        server.ledger.take(run_id, wire.encode(packet), 0)

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "delivered"
    assert len(server.ledger.packets[run_id]) == len(packets) + 1
    assert not path.exists()


def test_goes_on_where_it_stopped(open_stream: OpenStream, serve: Serve, spool_dir: Path) -> None:
    stream = open_stream("offline")
    for last in range(10, 60, 10):
        measure(stream, last - 9, last)
        stream.pump()
    stream.close("finished")
    server = serve(lambda e: right(e) if wire.decode(e.body).seq == 0 else fails(e))
    pauses: list[float] = []

    (result,) = sync_directory(spool_dir, server.url, sleep=pauses.append)

    assert (result.outcome, result.sent) == ("waiting", 1)
    assert result.message == f"{server.url} answered 500: out of order"
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    server.behaviour = right
    (result,) = sync_directory(spool_dir, server.url)
    assert result.outcome == "delivered"
    assert server.ledger.repeated == 0
    assert server.ledger.steps(stream.run_id) == list(range(1, 51))


def test_waits_as_long_as_the_server_asks_within_reason(
    open_stream: OpenStream, serve: Serve, spool_dir: Path
) -> None:
    leave(open_stream)
    server = serve(lambda exchange: exchange.answer(429, {}, Retry_After="7"))
    pauses: list[float] = []
    sync_directory(spool_dir, server.url, sleep=pauses.append)
    assert pauses == [7.0] * RETRIES

    server.behaviour = lambda exchange: exchange.answer(429, {}, Retry_After="3600")
    pauses.clear()
    (result,) = sync_directory(spool_dir, server.url, sleep=pauses.append)
    assert (result.outcome, pauses) == ("waiting", [])


def test_asks_an_absent_server_only_once_more_for_each_further_run(
    open_stream: OpenStream, spool_dir: Path
) -> None:
    for _ in range(3):
        leave(open_stream)
    pauses: list[float] = []

    results = sync_directory(spool_dir, closed_port(), sleep=pauses.append)

    assert [result.outcome for result in results] == ["waiting"] * 3
    assert "Connection refused" in results[0].message
    assert len(pauses) == RETRIES


def test_hands_on_the_words_of_a_server_that_says_no(
    open_stream: OpenStream, serve: Serve, spool_dir: Path
) -> None:
    leave(open_stream)
    server = serve(lambda exchange: exchange.answer(403, {"detail": "this key may only read"}))

    (result,) = sync_directory(spool_dir, server.url, api_key="ts_key")

    assert result.outcome == "refused"
    assert result.message.endswith("answered 403: this key may only read")
    assert len(server.requests) == 1
    done = trainsanity("sync", spool_dir, "--url", server.url)
    assert done.status == 2
    assert "this key may only read" in done.out


def test_one_file_that_is_no_spool_does_not_keep_the_others(
    open_stream: OpenStream, server: Loopback, spool_dir: Path
) -> None:
    run_id = leave(open_stream)
    alien = spool_dir / f"{identity.new_run_id()}.spool"
    alien.write_bytes(b"something else entirely" * 100)
    (spool_dir / f"{identity.new_run_id()}.spool").touch()  # its process died at once

    results = {result.run_id: result for result in sync_directory(spool_dir, server.url)}

    assert results[run_id].outcome == "delivered"
    assert results[alien.stem].outcome == "unusable"
    assert str(alien) in results[alien.stem].message
    assert len(results) == 2


def test_tells_how_far_it_is(open_stream: OpenStream, server: Loopback, spool_dir: Path) -> None:
    leave(open_stream)
    seen: list[tuple[int, int]] = []

    (result,) = sync_directory(
        spool_dir, server.url, on_progress=lambda path, sent, total: seen.append((sent, total))
    )

    assert seen == [(n, result.sent) for n in range(1, result.sent + 1)]


@pytest.mark.parametrize("moment", range(8))
def test_two_syncs_at_once_do_not_disturb_each_other(
    open_stream: OpenStream, server: Loopback, spool_dir: Path, moment: int
) -> None:
    run_ids = [leave(open_stream) for _ in range(4)]
    code = (
        "import sys; from pathlib import Path; from trainsanity.sync import sync_directory;"
        "print([r.outcome for r in sync_directory(Path(sys.argv[1]), sys.argv[2])])"
    )
    command = [sys.executable, "-c", code, str(spool_dir), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        server.wait_for_requests(moment)
        own = sync_directory(spool_dir, server.url)
        said, _ = other.communicate(timeout=60)

    assert other.returncode == 0
    assert set(eval(said)) | {r.outcome for r in own} <= {"delivered", "busy"}
    for run_id in run_ids:
        assert server.ledger.steps(run_id) == list(range(1, 51))
    assert not any(os.scandir(spool_dir))


def test_says_that_a_spool_of_another_runs_id_can_never_be_sent(
    server: Loopback, spool_dir: Path
) -> None:
    run_id = kill_one(spool_dir)
    for seq in range(20):
        server.ledger.take(run_id, wire.encode(Packet(run_id, seq, 9.0)), 0)

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "refused"
    assert "has another run of this id" in result.message
    assert f"delete {result.path}" in result.message
    assert result.path.exists()
