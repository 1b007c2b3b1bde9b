"""A run stream takes evidence without waiting, and everything it took is in the spool."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback import LONG, Exchange, Loopback, right
from measuring import NAMES, measure, spooled, steps_of

from trainsanity import identity, wire
from trainsanity.settings import Settings
from trainsanity.spool import Spool
from trainsanity.spool_writer import Pace, SpoolWriter
from trainsanity.stream import RunStream
from trainsanity.wire import Packet, Signal, WireError

OpenStream = Callable[..., RunStream]


def path_of(stream: RunStream) -> Path:
    assert stream.spool_path is not None
    return stream.spool_path


def test_spools_everything_when_offline(open_stream: OpenStream) -> None:
    stream = open_stream("offline", header={"project": "p", "tags": ["a"]})
    stream.declare(Signal("loss/reported", "1", "loss as shown"))
    stream.audit("fit", 0, {"epochs": 3})
    measure(stream, 1, 500)

    report = stream.close("finished")

    packets = spooled(path_of(stream))
    assert packets[0].run == {"project": "p", "tags": ["a"]}
    assert [p.seq for p in packets] == list(range(len(packets)))
    assert [p.state for p in packets] == ["running"] * (len(packets) - 1) + ["finished"]
    assert steps_of(packets) == list(range(1, 501))
    assert [s.label for p in packets for s in p.signals] == ["loss as shown"]
    assert [a.facts for p in packets for a in p.audits] == [{"epochs": 3}]
    assert packets[-1].step == 500
    assert not report.delivered
    assert report.pending_packets == len(packets)
    assert report.hint.endswith(f"trainsanity sync {path_of(stream).parent}")


def test_delivers_and_cleans_up(open_stream: OpenStream, server: Loopback, spool_dir: Path) -> None:
    stream = open_stream(server.url)
    measure(stream, 1, 300)

    report = stream.close("finished")

    assert report.delivered
    assert report.settled
    assert report.hint == ""
    assert server.ledger.steps(stream.run_id) == list(range(1, 301))
    assert list(spool_dir.iterdir()) == []


def test_does_not_advise_to_send_what_the_server_can_never_take(
    open_stream: OpenStream, server: Loopback
) -> None:
    """Its run_id is another run's."""
    run_id = identity.new_run_id()
    server.ledger.take(run_id, wire.encode(Packet(run_id, 0, 9.0)), 0)
    stream = open_stream(server.url, run_id=run_id)
    measure(stream, 1, 3)

    hint = stream.close("finished").hint

    assert "Leave run_id out" in hint
    assert str(path_of(stream)) in hint
    assert "sync" not in hint


def test_keeps_the_spool_when_asked(open_stream: OpenStream, server: Loopback) -> None:
    stream = open_stream(server.url, keep_spool=True)
    measure(stream, 1, 3)

    assert stream.close("finished").delivered

    assert steps_of(spooled(path_of(stream))) == [1, 2, 3]


def test_knows_the_runs_page(open_stream: OpenStream, server: Loopback) -> None:
    stream = open_stream(server.url)
    assert stream.run_url == f"{server.url}/runs/{stream.run_id}"

    stream.close("finished")

    assert stream.run_url == f"http://team.example/runs/{stream.run_id}"  # as the server names it
    assert open_stream("offline").run_url == ""


def test_tells_of_each_alert_when_it_changes(open_stream: OpenStream, server: Loopback) -> None:
    server.ledger.alerts = [{"id": "1", "title": "lost mask", "count": 1}]
    heard: list[tuple[str, int]] = []
    stream = open_stream(server.url, on_alert=lambda a: heard.append((a["title"], a["count"])))
    measure(stream, 1, 50)
    server.wait_for_requests(2)
    server.ledger.alerts = [{"id": "1", "title": "lost mask", "count": 9}]

    stream.close("finished")

    assert heard == [("lost mask", 1), ("lost mask", 9)]
    assert stream.alerts == [{"id": "1", "title": "lost mask", "count": 9}]


def test_hears_what_the_rules_made_of_the_last_evidence(
    serve: Callable[..., Loopback], open_stream: OpenStream
) -> None:
    """Rules speak after the answer to the packet: a slow step must not hold the alert back."""

    def judges_later(exchange: Exchange) -> None:
        right(exchange)
        if wire.decode(exchange.body).blocks:
            exchange.server.ledger.alerts = [{"id": "1"}]

    heard = threading.Event()
    stream = open_stream(
        serve(judges_later).url,
        pace=Pace(packet_seconds=0.01, echo_seconds=0.02),
        on_alert=lambda alert: heard.set(),
    )
    measure(stream, 1, 10)

    assert heard.wait(20)


def test_goes_on_when_the_users_function_raises(
    open_stream: OpenStream, server: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    server.ledger.alerts = [{"id": "1"}]

    def broken(alert: object) -> None:
        raise ZeroDivisionError("mine")

    stream = open_stream(server.url, on_alert=broken)
    server.wait_for_requests(2)  # the second carries what the first brought about
    measure(stream, 1, 20)

    assert stream.close("finished").delivered
    assert "ZeroDivisionError: mine" in caplog.text
    assert [a.name for a in server.ledger.audits(stream.run_id)] == ["probe_failed"]


def test_closing_in_the_sending_thread_waits_for_nobody(
    open_stream: OpenStream, server: Loopback
) -> None:
    """As when the garbage collector runs there and finds a call that was left."""
    measured, closed = threading.Event(), threading.Event()

    def close(alert: object) -> None:
        assert measured.wait(LONG)
        stream.close("failed", timeout=LONG)
        closed.set()

    server.ledger.alerts = [{"id": "1"}]
    stream = open_stream(server.url, on_alert=close)
    measure(stream, 1, 10)
    measured.set()

    assert closed.wait(LONG / 2)
    assert stream.close().delivered
    assert server.ledger.packets[stream.run_id][-1].state == "failed"


def test_says_that_the_run_is_alive_when_nothing_is_measured(
    open_stream: OpenStream, server: Loopback
) -> None:
    """As in a long validation."""
    stream = open_stream(server.url, pace=Pace(packet_seconds=0.01, heartbeat_seconds=0.02))
    server.wait_for_requests(5)
    stream.close("finished")

    packets = server.ledger.packets[stream.run_id]
    assert len(packets) >= 5
    assert all(p.silent_after >= 60 for p in packets)


def test_promises_no_more_than_it_can_keep(open_stream: OpenStream) -> None:
    """A process that once was held up for long allows itself ten times that."""
    stream = open_stream(pace=Pace(packet_seconds=0.01, heartbeat_seconds=0.05, silent_seconds=0.0))
    measure(stream, 1, 2)
    stream.close("finished")

    promises = [p.silent_after for p in spooled(path_of(stream))]
    assert promises == sorted(promises)
    assert promises[-1] > 0


def test_replaces_the_header_when_it_changes(open_stream: OpenStream) -> None:
    stream = open_stream(header={"name": "a"})
    stream.update_header({"name": "b"})
    stream.close("finished")

    assert [p.run for p in spooled(path_of(stream)) if p.run] in (
        [{"name": "a"}, {"name": "b"}],
        [{"name": "b"}],
    )


def test_copies_what_it_is_given(open_stream: OpenStream) -> None:
    stream = open_stream(pace=Pace(packet_seconds=60))
    values, facts = np.ones((1, 1)), {"list": [1]}
    stream.samples(("a/b",), [1], values)
    stream.audit("x", 1, facts)
    values[0, 0] = 99.0
    facts["list"].append(2)
    stream.close("finished")

    packets = spooled(path_of(stream))
    assert [b.values.tolist() for p in packets for b in p.blocks] == [[[1.0]]]
    assert [a.facts for p in packets for a in p.audits] == [{"list": [1]}]


def test_carries_nan_and_infinity(open_stream: OpenStream) -> None:
    stream = open_stream()
    stream.samples(("a/b",), [1, 2, 3], [[np.nan, np.inf, -np.inf]])
    stream.close("finished")

    (block,) = (b for p in spooled(path_of(stream)) for b in p.blocks)
    np.testing.assert_array_equal(block.values, [[np.nan, np.inf, -np.inf]])


@pytest.mark.parametrize(
    ("names", "steps", "values", "words"),
    [
        (("a", "a"), [1], [[1], [2]], "names of a block must differ"),
        (("a\n",), [1], [[1]], "printable"),
        (("",), [1], [[1]], "1 to 256"),
        (("a",), [1, 1], [[1, 2]], "increase strictly"),
        (("a",), [-1], [[1]], "within 0"),
        (("a",), [1, 2], [[1]], "shape"),
        (("a", "b"), [1], [[1]], "2 names"),
    ],
)
def test_says_at_once_what_no_server_would_take(
    open_stream: OpenStream, names: tuple[str, ...], steps: object, values: object, words: str
) -> None:
    stream = open_stream()
    with pytest.raises(ValueError, match=words):
        stream.samples(names, steps, values)


def test_says_at_once_which_facts_are_not_plain(open_stream: OpenStream) -> None:
    stream = open_stream()
    with pytest.raises(TypeError, match="of type object"):
        stream.audit("x", 1, {"a": object()})
    with pytest.raises(WireError, match="may need"):
        stream.audit("x", 1, {"a": "x" * 5_000_000})
    with pytest.raises(TypeError, match="of type object"):
        open_stream(header={"a": object()})


def test_closes_packets_that_grow_large(open_stream: OpenStream) -> None:
    stream = open_stream(pace=Pace(packet_seconds=60, packet_bytes=10_000))
    for step in range(1, 6):
        stream.samples(NAMES, np.arange(1000) + step * 1000, np.zeros((2, 1000)))
    stream.close("finished")

    assert sum(p.points for p in spooled(path_of(stream))) == 10_000


def test_what_is_complete_waits_for_no_more_but_for_the_last_packet(
    open_stream: OpenStream, server: Loopback
) -> None:
    stream = open_stream(server.url, pace=Pace(packet_seconds=10 * LONG, echo_seconds=10 * LONG))
    server.wait_for_requests(1)
    stream._writer._last_packet -= 10 * LONG
    measure(stream, 1, 1)
    server.wait_for_requests(2)
    measure(stream, 2, 10)
    stream.close("finished")

    packets = [steps_of([p]) for p in server.ledger.packets[stream.run_id] if p.blocks]
    assert packets == [[1], list(range(2, 11))]


def test_splits_what_fits_in_no_packet(open_stream: OpenStream) -> None:
    stream = open_stream()
    steps = np.arange(1_000_000)
    stream.samples(("a/b",), steps, steps[None].astype(np.float64))
    stream.close("finished")

    packets = spooled(path_of(stream))
    found = np.concatenate([b.steps for p in packets for b in p.blocks])
    np.testing.assert_array_equal(found, steps)


def test_takes_samples_from_several_threads(open_stream: OpenStream) -> None:
    stream = open_stream(pace=Pace(packet_seconds=0.001, packet_bytes=500))

    def work(name: str) -> None:
        for step in range(1, 201):
            stream.samples((name,), [step], [[step]])

    threads = [threading.Thread(target=work, args=(f"thread/{i}",)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    stream.close("finished")

    blocks = [b for p in spooled(path_of(stream)) for b in p.blocks]
    for i in range(4):
        own = [int(s) for b in blocks if b.names == (f"thread/{i}",) for s in b.steps]
        assert own == list(range(1, 201))


def test_closes_once(open_stream: OpenStream) -> None:
    stream = open_stream()
    measure(stream, 1, 5)
    report = stream.close("finished")

    measure(stream, 6, 10)
    stream.audit("late", 6, {})

    assert stream.close("failed") == report
    packets = spooled(path_of(stream))
    assert steps_of(packets) == [1, 2, 3, 4, 5]
    assert packets[-1].state == "finished"


def test_goes_on_with_the_spool_of_the_same_run(open_stream: OpenStream) -> None:
    first = open_stream()
    measure(first, 1, 5)
    first.close("failed")

    second = open_stream(run_id=first.run_id)
    measure(second, 4, 8)  # from an older checkpoint
    second.close("finished")

    packets = spooled(path_of(second))
    assert [p.seq for p in packets] == list(range(len(packets)))
    assert steps_of(packets) == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]


# the disk


def test_trains_on_without_any_disk(
    open_stream: OpenStream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr("tempfile.tempdir", str(blocked))
    stream = open_stream(spool_dir=blocked / "spool")
    measure(stream, 1, 30)

    report = stream.close("finished")

    assert not report.delivered
    assert report.spool_path is None
    assert report.dropped_points == 60
    assert "Nothing was kept" in report.hint
    assert str(blocked) in report.hint
    assert caplog.text.count("evidence is being lost") == 1


def test_spools_elsewhere_where_the_folder_cannot_be_written(
    open_stream: OpenStream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a container whose home is read-only."""
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stream = open_stream(spool_dir=blocked / "spool")
    measure(stream, 1, 30)
    stream.close("finished")

    assert path_of(stream).is_relative_to(tmp_path / "")
    assert steps_of(spooled(path_of(stream))) == list(range(1, 31))
    assert str(blocked) in caplog.text
    assert str(path_of(stream).parent) in caplog.text


def test_two_processes_cannot_write_one_run(
    open_stream: OpenStream, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_stream()
    second = open_stream(run_id=first.run_id)
    measure(second, 1, 3)

    assert second.close("finished").dropped_points == 6
    assert "another process" in caplog.text


def test_tells_what_a_full_disk_has_cost(spool_dir: Path) -> None:
    """Samples are dropped and counted while the disk is full; the next packet says so."""
    code = f"""
import logging, resource, sys, threading
from measuring import QUICK, measure
from trainsanity import identity
from trainsanity.settings import Settings
from trainsanity.stream import RunStream
lost = threading.Event()
class Watch(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), file=sys.stderr)
        lost.set()
logging.getLogger("trainsanity").addHandler(Watch())
settings = Settings.resolve("offline", spool_dir={str(spool_dir)!r})
stream = RunStream(settings, identity.new_run_id(), {{}}, pace=QUICK)
measure(stream, 1, 10)
while stream.spool_path.stat().st_size < 300: pass
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (stream.spool_path.stat().st_size, hard))
measure(stream, 11, 20)
assert lost.wait(20)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
measure(stream, 21, 30)
report = stream.close("finished")
print(report.dropped_points)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )

    dropped = int(done.stdout)
    packets = spooled(next(spool_dir.glob("*.spool")))
    (audit,) = (a for p in packets for a in p.audits)
    assert audit.name == "dropped"
    assert audit.facts["points"] == dropped > 0
    assert "File too large" in audit.facts["reason"]
    steps = steps_of(packets)
    assert len(steps) * 2 == 60 - dropped
    assert steps[-10:] == list(range(21, 31))
    assert done.stderr.count("evidence is being lost") == 1


class HangingSpool(Spool):
    """Its disk takes nothing before `goes_on` is set."""

    hangs: threading.Event
    goes_on: threading.Event

    def append(self, payload: bytes) -> int:
        self.hangs.set()
        assert self.goes_on.wait(LONG)
        return super().append(payload)


@pytest.fixture
def hanging(spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunStream]:
    HangingSpool.hangs, HangingSpool.goes_on = threading.Event(), threading.Event()
    monkeypatch.setattr("trainsanity.stream.Spool", HangingSpool)
    settings = Settings.resolve("offline", spool_dir=spool_dir)
    pace = Pace(packet_seconds=0.01, pending_bytes=10_000)
    stream = RunStream(settings, identity.new_run_id(), {}, pace=pace)
    assert HangingSpool.hangs.wait(LONG)
    yield stream
    HangingSpool.goes_on.set()
    stream.close("failed")


def test_keeps_little_in_memory_while_the_disk_hangs(
    hanging: RunStream, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(1000):
        hanging.samples(("a/b",), [step], [[1.0]])
    kept = 1000 - hanging.dropped_points
    HangingSpool.goes_on.set()
    hanging.close("finished")

    assert 0 < kept < 1000
    assert "the disk does not keep up" in caplog.text
    packets = spooled(path_of(hanging))
    assert sum(p.points for p in packets) == kept
    assert [a.facts["in_all"] for p in packets for a in p.audits] == [1000 - kept]


def test_closes_in_time_while_the_disk_hangs(
    hanging: RunStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    join = SpoolWriter.join

    def noted(writer: SpoolWriter, timeout: float) -> None:
        waits.append(timeout)
        join(writer, timeout)

    monkeypatch.setattr(SpoolWriter, "join", noted)
    before = time.monotonic()
    report = hanging.close("finished", timeout=0.2)

    assert max(waits) <= 0.2
    assert time.monotonic() - before < LONG / 2  # the disk hangs for longer
    assert not report.delivered
    assert "Not everything could be written" in report.hint


# forks and exits


def in_a_process(
    code: str, spool_dir: Path, url: str = "offline"
) -> subprocess.CompletedProcess[str]:
    """Runs code that finds a stream called `stream`."""
    start = f"""
import os, sys
from measuring import QUICK, measure
from trainsanity import identity
from trainsanity.settings import Settings
from trainsanity.stream import RunStream
settings = Settings.resolve({url!r}, spool_dir={str(spool_dir)!r}, close_timeout=1.0)
stream = RunStream(settings, identity.new_run_id(), {{}}, pace=QUICK)
"""
    return subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )


def test_is_inert_in_a_forked_child(spool_dir: Path) -> None:
    """Workers of a data loader inherit the callback, and must not speak for it."""
    code = """
measure(stream, 1, 100)
if os.fork() == 0:
    measure(stream, 1000, 1100)
    stream.audit("child", 1, {})
    stream.pump()
    assert not stream.close("failed").delivered
    sys.exit(7)  # with everything that runs at exit
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 7, status
measure(stream, 101, 200)
assert stream.close("finished").pending_packets
"""
    done = in_a_process(code, spool_dir)

    assert done.returncode == 0, done.stderr
    packets = spooled(next(spool_dir.glob("*.spool")))
    assert steps_of(packets) == list(range(1, 201))
    assert packets[-1].state == "finished"
    assert not any(p.audits for p in packets)


def test_survives_forks_at_any_moment(spool_dir: Path) -> None:
    """Also while a background thread holds a lock."""
    code = """
for start in range(1, 1001, 20):
    measure(stream, start, start + 19)
    if os.fork() == 0:
        measure(stream, 5000, 5010)
        stream.close("failed")
        os._exit(0)
    assert os.wait()[1] == 0
stream.close("finished")
"""
    done = in_a_process(code, spool_dir)

    assert done.returncode == 0, done.stderr
    assert steps_of(spooled(next(spool_dir.glob("*.spool")))) == list(range(1, 1001))


def test_lets_a_child_outlive_the_run(spool_dir: Path) -> None:
    """The lock goes with the parent, although the child still has its files."""
    code = """
measure(stream, 1, 10)
go_on, end = os.pipe()
if os.fork() == 0:
    os.close(end)
    os.close(1), os.close(2)
    os.read(go_on, 1)  # until nobody holds the other end
    os._exit(0)
stream.close("finished")
from trainsanity.spool import Spool
Spool(stream.spool_path).close()
"""
    done = in_a_process(code, spool_dir)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("ending", "status"),
    [("", 0), ("raise ZeroDivisionError", 1), ("sys.exit(3)", 3), ("raise KeyboardInterrupt", -2)],
)
def test_an_exit_without_close_keeps_everything(spool_dir: Path, ending: str, status: int) -> None:
    done = in_a_process("measure(stream, 1, 100)\n" + ending, spool_dir)

    assert done.returncode == status
    assert "trainsanity sync" in done.stderr
    packets = spooled(next(spool_dir.glob("*.spool")))
    assert steps_of(packets) == list(range(1, 101))
    assert packets[-1].state == "failed"


def test_an_exit_without_close_still_delivers(spool_dir: Path, server: Loopback) -> None:
    done = in_a_process("measure(stream, 1, 100)", spool_dir, server.url)

    assert done.returncode == 0
    assert done.stderr == ""
    (run_id,) = server.ledger.packets
    assert server.ledger.steps(run_id) == list(range(1, 101))
    assert server.ledger.packets[run_id][-1].state == "failed"
    assert list(spool_dir.iterdir()) == []


def test_imports_neither_keras_nor_the_server() -> None:
    code = (
        "import sys, trainsanity.stream, trainsanity.sync;"
        "found = {name.partition('.')[0] for name in sys.modules};"
        "assert not found & {'keras', 'tensorflow', 'jax', 'torch', 'trainsanity_server',"
        " 'fastapi', 'sqlalchemy'}, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
