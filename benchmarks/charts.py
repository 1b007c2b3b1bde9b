"""How long a server with much in it takes to answer what pages ask for.

Two runs of 40 signals over 1 M and 10 M steps lie in the database, and 5,000 short ones. The
figures are times over a real connection, and the size of the answer on the wire (gzip).

    python benchmarks/charts.py --quick
    python benchmarks/charts.py --steps 1000000 --steps 100000000 --json
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click
import numpy as np
from ingest import NAMES, Server, numbers, server, stored_bytes

from trainsanity.wire import Block
from trainsanity_server.storage import compaction, pyramid
from trainsanity_server.storage.cover import CHUNK_ROWS
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import new_id
from trainsanity_server.storage.models import RunRow, VerdictRow
from trainsanity_server.storage.schema import upgrade

Row = dict[str, Any]
DRAWN = NAMES[:8]
SPIKE = 1e6
CHUNKS_AT_ONCE = 64


def long_run(database: Database, steps: int) -> str:
    """A run as ingest, judge and compaction would have left it; one step of it is a spike."""
    run_id = new_id()
    database.write(lambda s: s.add(_ended(run_id, f"{steps:,} steps", steps)))
    values = numbers(7, CHUNK_ROWS * CHUNKS_AT_ONCE // 25 + 1)[:, : CHUNK_ROWS * CHUNKS_AT_ONCE]
    spike = steps // 3
    for first in range(1, steps + 1, CHUNK_ROWS * CHUNKS_AT_ONCE):
        rows = min(CHUNK_ROWS * CHUNKS_AT_ONCE, steps - first + 1)
        part = values[:, :rows]
        if first <= spike < first + rows:
            part = part.copy()
            part[0, spike - first] = SPIKE
        block = Block(NAMES, np.arange(first, first + rows), part)
        _store(database, run_id, block)
    return run_id


def _store(database: Database, run_id: str, block: Block) -> None:
    group = compaction.Group(0, NAMES, int(block.steps[-1]), int(block.steps[-1]))
    for i in range(0, len(block.steps), CHUNK_ROWS):
        steps, values = block.steps[i : i + CHUNK_ROWS], block.values[:, i : i + CHUNK_ROWS]
        group.chunks.append(compaction.packed_chunk(run_id, group, steps, values))

    def work(session: Any) -> None:
        compaction.put_groups(session, run_id, [group])
        pyramid.build_levels(session, run_id, 0, len(NAMES))

    database.write(work)


def _ended(run_id: str, name: str, steps: int, at: float = 1.0) -> RunRow:
    return RunRow(
        id=run_id,
        project="benchmark",
        name=name,
        state="finished",
        step=steps,
        started_at=at,
        last_seen_at=at,
        ended_at=at,
        config={"units": 128, "dropout": 0.1, "optimizer": "adam"},
        sparkline={"signal": "loss/reported", "values": [float(i) for i in range(48)]},
    )


def many_runs(database: Database, count: int) -> None:
    def work(session: Any) -> None:
        for i in range(count):
            run = _ended(new_id(), f"run {i}", 1000, at=1000.0 + i)
            run.tags = ["nightly"] if i % 7 == 0 else []
            session.add(run)
            session.add_all(
                VerdictRow(run_id=run.id, rule=f"rule-{n}", verdict="ok", reason="")
                for n in range(10)
            )

    database.write(work)


def times(running: Server, path: str, repeats: int) -> tuple[list[float], int, bytes]:
    """Milliseconds of each answer, its size on the wire, and the answer."""
    target = urlsplit(running.address)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        body = response.read()
        found.append((time.perf_counter() - begin) * 1e3)
        if response.status != 200:
            raise click.ClickException(f"{path} was answered {response.status}: {body[:200]!r}")
    connection.close()
    return found, len(body), body


def measure(running: Server, runs: dict[int, str], listed: int, repeats: int) -> list[Row]:
    rows = []
    for steps, run_id in runs.items():
        names = "&".join(f"name={quote(name)}" for name in DRAWN)
        base = f"/api/v1/runs/{run_id}/signals/data?{names}"
        for words, query in (
            ("whole run", ""),
            ("a tenth", f"&first_step={steps // 3 - 1000}&last_step={steps // 3 + steps // 10}"),
            ("400 steps", f"&first_step={steps // 3 - 200}&last_step={steps // 3 + 200}"),
        ):
            found, size, _ = times(running, base + query, repeats)
            case = f"8 signals, {steps:,} steps, {words}"
            rows.append((f"{case}: p95", float(np.percentile(found, 95)), "ms"))
            rows.append((f"{case}: answer", size / 1000, "kB"))
            _check_spike(running, base + query)
        found, _, _ = times(running, f"/api/v1/runs/{run_id}/signals", repeats)
        rows.append(
            (f"list of signals, {steps:,} steps: p95", float(np.percentile(found, 95)), "ms")
        )
    for words, query in (
        ("first page", ""),
        ("looked for", "?q=nightly"),
        ("a project", "?project=benchmark"),
    ):
        found, size, _ = times(running, f"/api/v1/runs{query}", repeats)
        case = f"run list of {listed:,}, {words}"
        rows.append((f"{case}: p95", float(np.percentile(found, 95)), "ms"))
    found, _, _ = times(running, "/", repeats)
    rows.append(
        (f"page with the run list of {listed:,}: p95", float(np.percentile(found, 95)), "ms")
    )
    return [
        {"case": case, "subject": "trainsanity", "value": float(f"{value:.4g}"), "unit": unit}
        for case, value, unit in rows
    ]


def _check_spike(running: Server, path: str) -> None:
    signal = running.get(path)["signals"][0]
    if max(signal.get("max") or signal["value"]) != SPIKE:
        raise click.ClickException(f"the spike of one step is not in the answer to {path}")


@click.command(help=__doc__)
@click.option("--steps", multiple=True, type=int, help="Lengths of the long runs.")
@click.option("--runs", default=5000, show_default=True, help="Short runs in the list.")
@click.option("--repeats", default=60, show_default=True, help="Answers that are timed.")
@click.option("--quick", is_flag=True, help="Under a minute: 1 M steps only, 20 answers.")
@click.option("--json", "as_json", is_flag=True, help="A list for programs.")
def main(steps: tuple[int, ...], runs: int, repeats: int, quick: bool, as_json: bool) -> None:
    lengths = steps or ((1_000_000,) if quick else (1_000_000, 10_000_000))
    with tempfile.TemporaryDirectory(prefix="ts-bench-") as folder:
        file = Path(folder) / "bench.db"
        database = Database(f"sqlite:///{file}")
        upgrade(database)
        many_runs(database, runs)
        long = {length: long_run(database, length) for length in lengths}
        database.close()
        stored = stored_bytes(file) / (sum(lengths) * len(NAMES))
        with server(f"sqlite:///{file}") as running:
            rows = measure(running, long, runs, 20 if quick else repeats)
    rows.append(
        {
            "case": "stored",
            "subject": "trainsanity",
            "value": round(stored, 3),
            "unit": "bytes/point",
        }
    )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['case']:<55} {row['value']:>10,.10g} {row['unit']}")


if __name__ == "__main__":
    main()
