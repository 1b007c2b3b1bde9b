"""The same storm of samples against MLflow's own server, by its REST API."""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

START_SECONDS = 120


def storm(python: str, folder: Path, clients: int, count: int, names: tuple[str, ...]) -> float:
    """Samples a second that MLflow acknowledges; each request holds 25 steps of all signals.

    Args:
        python: interpreter of an environment with MLflow.
        count: requests of each client.
    """
    context = multiprocessing.get_context("spawn")
    with _server(python, folder) as port:
        barrier, ended = context.Barrier(clients + 1), context.Queue()
        processes = [
            context.Process(target=_client, args=(port, count, names, barrier, ended))
            for _ in range(clients)
        ]
        for process in processes:
            process.start()
        barrier.wait()
        begin = time.perf_counter()
        for _ in processes:
            ended.get(timeout=600)
        seconds = time.perf_counter() - begin
        for process in processes:
            process.join()
    return clients * count * 25 * len(names) / seconds


@contextlib.contextmanager
def _server(python: str, folder: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [python, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    log = (folder / "mlflow.log").open("w")
    process = subprocess.Popen(
        command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ}
    )
    try:
        _wait(port, process, folder)
        yield port
    finally:
        # It starts workers of its own; they share its session.
        os.killpg(process.pid, 15)
        process.wait(60)
        log.close()


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while time.monotonic() < ends_at and process.poll() is None:
        with contextlib.suppress(OSError):
            if _call(http.client.HTTPConnection("127.0.0.1", port), "GET", "/health") is not None:
                return
        time.sleep(0.2)
    raise click.ClickException(
        f"MLflow did not start: {(folder / 'mlflow.log').read_text()[-500:]}"
    )


def _call(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json"}
    payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, payload, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise click.ClickException(f"MLflow answered {response.status}: {answer[:300]!r}")
    return json.loads(answer) if answer.startswith(b"{") else answer


def _client(port: int, count: int, names: tuple[str, ...], barrier: Any, ended: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    api = "/api/2.0/mlflow/runs"
    run = _call(connection, "POST", f"{api}/create", {"experiment_id": "0"})
    run_id = run["run"]["info"]["run_id"]
    bodies = [_body(run_id, number, names) for number in range(count)]
    barrier.wait()
    for body in bodies:
        _call(connection, "POST", f"{api}/log-batch", body)
    ended.put(True)


def _body(run_id: str, number: int, names: tuple[str, ...]) -> bytes:
    now = int(time.time() * 1000)
    metrics = [
        {"key": name, "value": 1.0 / (step + 1), "timestamp": now, "step": step}
        for step in range(number * 25, number * 25 + 25)
        for name in names
    ]
    return json.dumps({"run_id": run_id, "metrics": metrics}).encode()
