"""Kills the client or the server at random moments, and counts what is lost and what comes twice.

A process measures steps and streams them to a real server on SQLite. In turns, `kill -9` hits
that process, and the server, which is then started again on the same database. What a killed
client has left is sent by `sync`. In the end the server must have every step that was spooled,
once, and must never have asked again for a packet that it had acknowledged.

    python benchmarks/kill_test.py                # 200 kills, about five minutes
    python benchmarks/kill_test.py --quick --json
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
import numpy as np

from trainsanity import identity, wire
from trainsanity.settings import Settings
from trainsanity.spool import Spool
from trainsanity.spool_writer import Pace
from trainsanity.stream import RunStream
from trainsanity.sync import sync_directory

SIGNALS = tuple(f"signal_{i}/reported" for i in range(40))
BURST = 25  # steps measured at once, as after one reading of the tape
PACE = Pace(packet_seconds=0.005, packet_bytes=16 * 1024)  # many packets: many moments to be hit
READY_SECONDS = 60.0


@dataclass
class Tally:
    """What the kills have done, all of it summed over the runs."""

    runs: int = 0
    acknowledged: int = 0  # packets
    asked_again: int = 0  # of these: packets that the server wanted once more
    spooled: int = 0  # points
    missing: int = 0
    doubled: int = 0
    unsent: int = 0  # packets that `sync` could not deliver
    torn: int = 0  # spools whose last record was torn, and cut
    problems: list[str] = field(default_factory=list)


class Server:
    """A real server that can be killed and started again on the same database."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._database = f"sqlite:///{folder}/kill.db"
        self._log_path = folder / "server.log"
        self._log = open(self._log_path, "ab")  # noqa: SIM115 - closed in stop()
        self.start()

    def start(self) -> None:
        arguments = ["serve", "--port", str(self._port), "--db", self._database]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainsanity", *arguments],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "TRAINSANITY_API_KEYS": ""},
        )
        _until(self._is_ready, "the server did not start")

    def _is_ready(self) -> bool:
        try:
            urlopen(f"{self.url}/readyz").close()
        except OSError:  # nobody listens yet, or not ready, or it was just killed
            if self._process.poll() is not None:
                said = self._log_path.read_text("utf-8", "replace")[-2000:]
                raise click.ClickException(f"the server ended at once:\n{said}") from None
            return False
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def get(self, path: str) -> dict[str, Any]:
        with urlopen(f"{self.url}/api/v1/{path}") as answer:
            body: dict[str, Any] = json.load(answer)
        return body


def train(url: str, folder: str) -> None:
    """The process that is watched: measures until its input ends, says what is acknowledged."""
    note = Spool.acknowledge

    def acknowledge(spool: Spool, next_seq: int) -> None:
        os.write(1, b"acknowledged %d\n" % next_seq)
        note(spool, next_seq)

    Spool.acknowledge = acknowledge
    settings = Settings.resolve(url, spool_dir=folder, keep_spool=True, close_timeout=READY_SECONDS)
    header = {"project": "kill-test", "name": f"pid {os.getpid()}"}
    stream = RunStream(settings, identity.new_run_id(), header, pace=PACE)
    os.write(1, b"run %s\n" % stream.run_id.encode())
    os.set_blocking(0, False)
    step = 0
    while not _has_ended():
        steps = np.arange(step + 1, step + BURST + 1)
        stream.samples(SIGNALS, steps, np.tile(steps, (len(SIGNALS), 1)).astype(np.float32))
        step += BURST
        time.sleep(0.005)
    stream.close("finished")


def _has_ended() -> bool:
    """Whether the parent has closed our input."""
    with contextlib.suppress(BlockingIOError):
        return os.read(0, 1) == b""
    return False


class Client:
    """The process that measures."""

    def __init__(self, url: str, spool_dir: Path) -> None:
        self.spool_dir = spool_dir
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--train", url, str(spool_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.run_id = self._process.stdout.readline().decode().split()[1]

    def kill(self) -> list[int]:
        self._process.kill()
        return self._acknowledged()

    def finish(self) -> list[int]:
        return self._acknowledged()

    def _acknowledged(self) -> list[int]:
        output, _ = self._process.communicate()
        # The last line may have been cut by the kill.
        return [int(line.split()[1]) for line in output.decode().split("\n")[:-1]]


def play(server: Server, spool_dir: Path, chance: random.Random, victim: str, tally: Tally) -> None:
    """One run with one kill."""
    client = Client(server.url, spool_dir)
    time.sleep(chance.uniform(0.0, 0.4))
    if victim == "client":
        acknowledged = client.kill()
    else:
        server.kill()
        server.start()
        time.sleep(chance.uniform(0.0, 0.2))
        acknowledged = client.finish()
    tally.runs += 1
    tally.acknowledged += max(acknowledged, default=0)
    tally.asked_again += sum(max(0, a - b) for a, b in itertools.pairwise(acknowledged))
    points = _spooled_points(spool_dir / f"{client.run_id}.spool", tally)
    for result in sync_directory(spool_dir, server.url):
        if result.outcome != "delivered":
            tally.unsent += result.pending
            tally.problems.append(f"{result.run_id}: {result.message}")
    _compare(server, client.run_id, points, tally)


def _spooled_points(path: Path, tally: Tally) -> int:
    size = path.stat().st_size
    with contextlib.closing(Spool(path)) as spool:
        packets = [wire.decode(spool.read(seq)) for seq in range(spool.next_seq)]
    tally.torn += path.stat().st_size < size
    points = sum(packet.points for packet in packets)
    tally.spooled += points
    return points


def _compare(server: Server, run_id: str, points: int, tally: Tally) -> None:
    steps = points // len(SIGNALS)
    signals = server.get(f"runs/{run_id}/signals")["signals"] if points else []
    counts = {signal["name"]: signal["count"] for signal in signals}
    for name in SIGNALS:
        tally.missing += max(0, steps - counts.get(name, 0))
        tally.doubled += max(0, counts.get(name, 0) - steps)
    for signal in signals:
        seen = [signal[key] for key in ("first_step", "last_step", "min", "max", "last")]
        if seen != [1, steps, 1, steps, steps]:
            tally.problems.append(f"{run_id}: {signal['name']} has {seen}, not 1 to {steps}")


def _until(is_true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise click.ClickException(f"{otherwise} within {READY_SECONDS:.0f} s")
        time.sleep(0.05)


def rows(tally: Tally, kills: dict[str, int]) -> Iterator[tuple[str, int, str]]:
    yield "kills of the client", kills["client"], "kills"
    yield "kills of the server", kills["server"], "kills"
    yield "packets acknowledged", tally.acknowledged, "packets"
    yield "acknowledged packets lost", tally.asked_again, "packets"
    yield "points spooled", tally.spooled, "points"
    yield "spooled points missing on the server", tally.missing, "points"
    yield "points stored twice", tally.doubled, "points"
    yield "packets left unsent", tally.unsent, "packets"
    yield "torn last records cut", tally.torn, "records"


@click.command()
@click.option("--kills", default=200, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option("--quick", is_flag=True, help="10 kills.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--train", "watched", nargs=2, hidden=True)
def main(
    kills: int, seed: int, quick: bool, as_json: bool, watched: tuple[str, str] | None
) -> None:
    """Counts acknowledged data lost over random kills of client and server."""
    if watched:
        return train(*watched)
    kills = 10 if quick else kills
    chance, tally, done = random.Random(seed), Tally(), {"client": 0, "server": 0}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            for number in range(kills):
                victim = ("client", "server")[number % 2]
                play(server, Path(folder) / "spool", chance, victim, tally)
                done[victim] += 1
                print(f"\r{number + 1} of {kills} kills", end="", file=sys.stderr, flush=True)
        finally:
            server.stop()
            print(file=sys.stderr)
    found = list(rows(tally, done))
    if as_json:
        table = [
            {"case": case, "subject": "trainsanity", "value": value, "unit": unit}
            for case, value, unit in found
        ]
        print(json.dumps(table, indent=2))
    else:
        for case, value, unit in found:
            print(f"{case:40}{value:>14,} {unit}")
    for problem in tally.problems:
        print(problem, file=sys.stderr)
    if tally.asked_again or tally.missing or tally.doubled or tally.unsent or tally.problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
