"""The command: server up, four trainings, one line each, and on until Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any
from urllib.parse import quote

import click
import httpx2
from rich.console import Console

from trainsanity_server.demo.processes import Program, ProgramFailed, running
from trainsanity_server.demo.stories import STORIES, Story

HOST = "127.0.0.1"
READY_SECONDS = 60.0  # for the server to answer
SETTLED_SECONDS = 120.0  # for every rule to have spoken about a run that has ended
POLL_SECONDS = 0.1
PROJECT = "demo"
# What TensorFlow tells of the machine at every start, whatever its log level.
TENSORFLOW_LOG = re.compile(r"WARNING: All log messages before absl|[IWE]0000 ")


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8321,
    show_default=True,
    help="Port of the server, on 127.0.0.1.",
)
@click.option("--db", metavar="URL", help="Database, as for `trainsanity serve`.")
@click.option("--open", "open_browser", is_flag=True, help="Open the dashboard in a browser.")
@click.option("--exit", "leave", is_flag=True, help="Stop when the trainings are done.")
def demo(port: int, db: str | None, open_browser: bool, leave: bool) -> None:
    """Run four real trainings on a server; three hide something.

    A tagger learns the classes of the tokens in Python's own standard library.
    """
    console = Console(highlight=False, soft_wrap=True)
    _check_training_is_possible()
    _check_port_is_free(port)
    url = f"http://{HOST}:{port}"
    try:
        with _ended_like_ctrl_c(), running("the server", *_server(port, db)) as server:
            _wait_until_ready(server, url, console)
            console.print(f"The dashboard is at [bold]{url}[/bold]")
            if open_browser:
                click.launch(url)
            lines = [_train(story, server, url, console) for story in STORIES]
            console.print("\n" + "\n".join(lines), markup=False)
            if not leave:
                console.print(f"\nThe server goes on at {url}. Ctrl-C stops it.")
                server.wait()
                server.check()
    except ProgramFailed as failure:
        raise click.ClickException(str(failure)) from failure
    except KeyboardInterrupt:
        console.print("Stopped.")


def _check_training_is_possible() -> None:
    missing = [name for name in ("keras", "tensorflow") if not importlib.util.find_spec(name)]
    if missing:
        raise click.ClickException(
            f"the demo trains with Keras on TensorFlow. Not installed: {', '.join(missing)}. "
            f"Try: pip install {' '.join(missing)}"
        )


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        # As the server does it: a port that only waits for old connections to fade is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            other = port + 1 if port < 65535 else port - 1
            raise click.ClickException(
                f"port {port} on {HOST} cannot be used ({error.strerror}). Stop what listens "
                f"there, or choose another one: trainsanity demo --port {other}, "
                f'in a checkout: make demo ARGS="--port {other}"'
            ) from error


def _server(port: int, db: str | None) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, "-m", "trainsanity", "serve", "--host", HOST, "--port", str(port)]
    if db:
        command += ["--db", db]
    environment = {**os.environ, "TRAINSANITY_BASE_URL": f"http://{HOST}:{port}"}
    # A server for this machine alone asks for no key.
    environment.pop("TRAINSANITY_API_KEYS", None)
    return command, environment


def _wait_until_ready(server: Program, url: str, console: Console) -> None:
    with console.status("Starting the server ..."):
        for _ in _attempts(READY_SECONDS):
            server.check()
            if _is_ready(url):
                return
    raise ProgramFailed(f"{server.name} did not answer at {url} within {READY_SECONDS:.0f} s.")


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).is_success
    except httpx2.TransportError:
        return False


def _attempts(seconds: float) -> Iterator[None]:
    """Once now and then, until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(POLL_SECONDS)


def _train(story: Story, server: Program, url: str, console: Console) -> str:
    """Trains, waits for the rules' verdicts, and gives the run's line."""
    number = STORIES.index(story) + 1
    console.print(f"\n[bold]Training {number} of {len(STORIES)}: {story.run_name}[/bold]")
    before = {run["id"] for run in _runs(url, story)}
    command = [sys.executable, "-u", str(story.path)]
    with (
        console.status(f"{story.path.name}: Keras starts and trains ..."),
        running(story.path.name, command, _training_environment(url), _printer(console)) as program,
    ):
        while not program.wait(POLL_SECONDS):
            server.check()
        program.check_success()
        run = _settled(story, before, url)
    return story.line(run, _last_values(url, run), f"{url}/runs/{run['id']}")


def _training_environment(url: str) -> dict[str, str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    return {**os.environ, **quiet, "KERAS_BACKEND": "tensorflow", "TRAINSANITY_URL": url}


def _printer(console: Console) -> Callable[[str], None]:
    def show(line: str) -> None:
        if not TENSORFLOW_LOG.match(line):
            console.print(f"  {line}", markup=False)

    return show


def _settled(story: Story, before: set[str], url: str) -> dict[str, Any]:
    for _ in _attempts(SETTLED_SECONDS):
        new = [run for run in _runs(url, story) if run["id"] not in before]
        if new and new[0]["settled"]:
            return new[0]
    raise ProgramFailed(
        f"{story.path.name} trained, but its run was not judged within {SETTLED_SECONDS:.0f} s: "
        f"see {url}."
    )


def _runs(url: str, story: Story) -> list[dict[str, Any]]:
    """The story's runs, newest first."""
    page = _get(f"{url}/api/v1/runs?project={PROJECT}&q={quote(story.run_name)}")
    return [run for run in page["runs"] if run["name"] == story.run_name]


def _last_values(url: str, run: Mapping[str, Any]) -> dict[str, float]:
    rows = _get(f"{url}/api/v1/runs/{run['id']}/signals")["signals"]
    return {row["name"]: float(row["last"]) for row in rows}


def _get(address: str) -> dict[str, Any]:
    # The trainings, and the rules about them, keep the machine busy.
    response = httpx2.get(address, trust_env=False, timeout=READY_SECONDS)
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """A plain `kill` also ends what the demo has started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
