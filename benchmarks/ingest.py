"""How many samples a second the server takes in, durably, while all rules judge.

Four client processes send packets of 25 steps × 40 signals, each of its own run, one after the
other over one connection, as fast as the server acknowledges them. Packets are encoded before the
clock starts: this is about the server. It runs in its own process with its default settings.

    python benchmarks/ingest.py --quick
    python benchmarks/ingest.py --db postgresql://user@host/name --json
    python benchmarks/ingest.py --peer mlflow=/venvs/mlflow/bin/python
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import multiprocessing
import multiprocessing.pool
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
import psutil
from storm import mlflow_server

from trainsanity import wire
from trainsanity.wire import Block, Packet
from trainsanity_server.storage.ids import new_id

STEPS = 25  # in a packet
PERIOD = 400  # packets encoded with numbers of their own; then the numbers repeat
SAME = ("reported", "recomputed", "batch", "unmasked", "all", "weighted", "differentiated")
NAMES = (
    *(f"{metric}/{witness}" for metric in ("loss", "accuracy", "auc") for witness in SAME[:6]),
    *("loss/differentiated", "loss/added", "loss/nonfinite", "outputs/nonfinite"),
    *("inputs/nonfinite", "weights/nonfinite", "gradient/nonfinite"),
    *("mask/input_coverage", "mask/loss_coverage", "mask/metric_coverage"),
    *("learning_rate/declared", "learning_rate/applied", "learning_rate/effective"),
    *("gradient/norm", "gradient/sampled_norm", "update/sampled_norm", "weights/sampled_norm"),
    *("weights/moved_outside", "batch/size", "time/step", "time/data_wait", "memory/rss"),
)
SIZES = {"update/sampled_norm": 0.001, "time/data_wait": 0.02, "memory/rss": 900.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """What one client did."""

    run_id: str
    packets: int
    seconds: float
    slowest: float  # seconds that one packet took


def numbers(seed: int, period: int) -> np.ndarray:
    """Samples of a healthy run, shape (signals, steps), float32: noisy, and witnesses agree."""
    rng = np.random.default_rng(seed)
    steps = period * STEPS
    columns: dict[str, np.ndarray] = {}
    for name in NAMES:
        quantity, _, witness = name.partition("/")
        noise = rng.normal(1.0, 0.02, steps)
        if witness in SAME:
            base = 2.0 / np.sqrt(np.arange(1, steps + 1)) if quantity == "loss" else 0.7
            columns[name] = columns.get(f"{quantity}/reported", base * noise)
        elif witness == "nonfinite" or name in ("loss/added", "weights/moved_outside"):
            columns[name] = np.zeros(steps)
        elif quantity in ("learning_rate", "mask", "batch"):
            columns[name] = np.full(steps, {"learning_rate": 1e-3, "mask": 0.5}.get(quantity, 32))
        else:
            columns[name] = SIZES.get(name, 1.0) * noise
    return np.array([columns[name] for name in NAMES], np.float32)


def packets_of(run_id: str, client: int, count: int) -> list[bytes]:
    """Encoded packets; the last one ends the run."""
    values = numbers(client, min(count, PERIOD))
    encoded = []
    for seq in range(count):
        first = seq * STEPS + 1
        at = first % (values.shape[1] - STEPS)
        steps = np.arange(first, first + STEPS)
        block = Block(NAMES, steps, values[:, at : at + STEPS])
        encoded.append(wire.encode(_packet(run_id, client, seq, count, block)))
    return encoded


def _packet(run_id: str, client: int, seq: int, count: int, block: Block) -> Packet:
    header = {"project": "benchmark", "name": f"client {client}", "kind": "fit"}
    return Packet(
        run_id,
        seq,
        time.time(),
        step=int(block.steps[-1]),
        state="finished" if seq == count - 1 else "running",
        run=header if seq == 0 else None,
        blocks=(block,),
    )


def send(address: str, client: int, count: int, barrier: Any) -> Sent:
    """Body of a client process."""
    run_id = new_id()
    bodies = packets_of(run_id, client, count)
    target = urlsplit(address)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=120)
    path = f"/api/v1/runs/{run_id}/packets?cursor="
    headers = {"Content-Type": wire.MEDIA_TYPE}
    cursor, slowest = 0, 0.0
    connection.connect()
    barrier.wait()
    begin = last = time.perf_counter()
    for body in bodies:
        connection.request("POST", f"{path}{cursor}", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {answer}")
        cursor = answer["cursor"]
        now = time.perf_counter()
        slowest, last = max(slowest, now - last), now
    return Sent(run_id, count, last - begin, slowest)


def _client(address: str, client: int, count: int, barrier: Any, results: Any) -> None:
    results.put(send(address, client, count, barrier))


def storm(address: str, clients: int, count: int) -> tuple[list[Sent], float]:
    """All clients at once; seconds from the first packet to the last acknowledgement."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(clients + 1), context.Queue()
    processes = [
        context.Process(target=_client, args=(address, i, count, barrier, results))
        for i in range(clients)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    begin = time.perf_counter()
    sent = [results.get(timeout=600) for _ in processes]
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    return sent, seconds


@dataclass
class Server:
    """A real server in its own process."""

    address: str
    process: subprocess.Popen[str]
    start_seconds: float

    def get(self, path: str) -> Any:
        target = urlsplit(self.address)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    @property
    def resident_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    @property
    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def wait_until_settled(self, run_ids: list[str]) -> float:
        begin = time.perf_counter()
        while not all(self.get(f"/api/v1/runs/{run_id}")["settled"] for run_id in run_ids):
            time.sleep(0.02)
        return time.perf_counter() - begin


@contextlib.contextmanager
def server(db: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "trainsanity", "serve", "--port", "0", "--db", db]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http" not in line:
            raise click.ClickException(f"the server did not start. Received: {line!r}")
        address = next(word for word in line.split() if word.startswith("http"))
        yield Server(address, process, time.perf_counter() - begin)
    finally:
        process.terminate()
        process.wait(60)


def measure(db: str, clients: int, count: int, file: Path | None) -> list[Row]:
    with server(db) as running:
        empty_mib, cpu_before = running.resident_mib, running.cpu_seconds
        sent, seconds = storm(running.address, clients, count)
        settling = running.wait_until_settled([one.run_id for one in sent])
        alerts = sum(
            len(running.get(f"/api/v1/runs/{one.run_id}/alerts")["alerts"]) for one in sent
        )
        full_mib = running.resident_mib
        cpu_seconds = running.cpu_seconds - cpu_before
        start_seconds = running.start_seconds
    points = clients * count * STEPS * len(NAMES)
    rows = [
        ("durable samples acknowledged", points / seconds, "points/s"),
        ("packets acknowledged", clients * count / seconds, "packets/s"),
        ("processor time of the server", cpu_seconds / (clients * count) * 1e3, "ms/packet"),
        ("slowest acknowledgement", max(one.slowest for one in sent) * 1e3, "ms"),
        ("from the last packet until all is judged", settling, "s"),
        ("alerts on these healthy runs", alerts, "alerts"),
        ("start on an empty database", start_seconds, "s"),
        ("resident memory, empty", empty_mib, "MiB"),
        ("resident memory, after all", full_mib, "MiB"),
    ]
    if file is not None:
        rows.append(("stored", stored_bytes(file) / points, "bytes/point"))
    return [row(case, "trainsanity", value, unit) for case, value, unit in rows]


def row(case: str, subject: str, value: float, unit: str) -> Row:
    return {"case": case, "subject": subject, "value": float(f"{value:.4g}"), "unit": unit}


def stored_bytes(file: Path) -> int:
    """Pages in use of an SQLite file."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


def _with_mlflow(peer: str | None) -> str | None:
    """The interpreter that was named, or this one if it has MLflow."""
    if peer is not None:
        return peer.removeprefix("mlflow=")
    return sys.executable if importlib.util.find_spec("mlflow") else None


@click.command(help=__doc__)
@click.option("--db", help="Database; default: a new SQLite file.")
@click.option("--clients", default=4, show_default=True, help="Client processes.")
@click.option("--packets", default=4000, show_default=True, help="Packets of each client.")
@click.option("--peer", metavar="mlflow=PYTHON", help="Interpreter of an environment with MLflow.")
@click.option("--quick", is_flag=True, help="Under a minute.")
@click.option("--json", "as_json", is_flag=True, help="A list for programs.")
def main(
    db: str | None, clients: int, packets: int, peer: str | None, quick: bool, as_json: bool
) -> None:
    count = min(packets, 1500) if quick else packets
    with tempfile.TemporaryDirectory(prefix="ts-bench-") as folder:
        file = None if db else Path(folder) / "bench.db"
        rows = measure(db or f"sqlite:///{file}", clients, count, file)
        python = _with_mlflow(peer)
        if python is not None:
            # A twentieth of the packets: it takes about as long.
            value = mlflow_server.storm(python, Path(folder), clients, count // 20, NAMES)
            rows.insert(1, row(rows[0]["case"], "mlflow", value, "points/s"))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{clients} clients × {count} packets × {STEPS} steps × {len(NAMES)} signals")
    for each in rows:
        value = f"{each['value']:>12,.10g} {each['unit']}"
        click.echo(f"{each['case']:<45} {each['subject']:<12} {value}")


if __name__ == "__main__":
    main()
