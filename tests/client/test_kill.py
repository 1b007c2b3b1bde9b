"""A process that is killed at any moment leaves an intact spool, and `sync` completes the run."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Loopback
from measuring import spooled, steps_of

from trainsanity.spool import Spool
from trainsanity.sync import sync_directory

KILLS = 12  # of each kind; benchmarks/kill_test.py does hundreds


@contextlib.contextmanager
def process(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that prints a line when it is under way, and is killed in the end."""
    command = [sys.executable, "-c", code, *args]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL


def let_run(child: subprocess.Popen[str], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


APPENDS = """
import os, pathlib, random, sys
from trainsanity.spool import Spool
spool = Spool(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10**9):
    spool.append(random.Random(number).randbytes(1 + number * 7919 % 30_000))
    os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_appended_survives(tmp_path: Path, seed: int) -> None:
    """Every record whose append had returned is there, and nothing that was never appended."""
    path = tmp_path / "run.spool"
    with process(APPENDS, str(path)) as child:
        assert child.stdout is not None
        for _ in range(random.Random(seed).randrange(200)):
            child.stdout.readline()
        child.kill()
        said = child.stdout.read().splitlines()
    # The last line may be half of a number.
    returned = int(said[-2]) + 1 if len(said) > 1 else 0

    with contextlib.closing(Spool(path)) as spool:
        assert spool.next_seq >= returned
        for number in range(spool.next_seq):
            expected = random.Random(number).randbytes(1 + number * 7919 % 30_000)
            assert spool.read(number) == expected
    assert not path.with_suffix(".damaged").exists()


TRAINS = """
import sys
from measuring import measure
from trainsanity import identity
from trainsanity.settings import Settings
from trainsanity.spool_writer import Pace
from trainsanity.stream import RunStream
settings = Settings.resolve(sys.argv[1], spool_dir=sys.argv[2])
pace = Pace(packet_seconds=0.001, packet_bytes=2000)
stream = RunStream(settings, identity.new_run_id(), {"project": "kill"}, pace=pace)
print("ready", flush=True)
for start in range(1, 10**9, 100):
    measure(stream, start, start + 99)
    stream.audit("epoch", start, {"first_step": start})
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_an_offline_run_is_completed_by_sync(server: Loopback, spool_dir: Path, seed: int) -> None:
    with process(TRAINS, "offline", str(spool_dir)) as child:
        let_run(child, random.Random(seed).uniform(0.0, 0.1))

    check_completed(server, spool_dir)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_run_killed_while_sending_is_completed_by_sync(
    server: Loopback, spool_dir: Path, seed: int
) -> None:
    with process(TRAINS, server.url, str(spool_dir)) as child:
        let_run(child, random.Random(seed).uniform(0.0, 0.1))

    check_completed(server, spool_dir)


def check_completed(server: Loopback, spool_dir: Path) -> None:
    (path,) = spool_dir.glob("*.spool")
    packets = spooled(path)
    steps = steps_of(packets)
    assert [p.seq for p in packets] == list(range(len(packets)))
    assert steps == list(range(1, len(steps) + 1))

    (result,) = sync_directory(spool_dir, server.url)

    assert result.outcome == "delivered"
    assert list(spool_dir.iterdir()) == []
    received = server.ledger.packets.get(path.stem, [])
    assert steps_of(received) == steps
    if packets:  # else it was killed before its first packet
        assert [p.seq for p in received] == list(range(len(packets) + 1))
        assert received[-1].state == "failed"
