"""The standing cast of the client's tests: a folder, a server that does right, a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Behaviour, Loopback, right
from measuring import IMPATIENT, QUICK

from trainsanity import identity
from trainsanity.settings import Settings
from trainsanity.spool_writer import Pace
from trainsanity.stream import RunStream


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def serve() -> Iterator[Callable[..., Loopback]]:
    """Starts servers on loopback; stops them after the test."""
    started: list[Loopback] = []

    def start(behaviour: Behaviour = right, **options: Any) -> Loopback:
        started.append(Loopback(behaviour, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Loopback]) -> Loopback:
    return serve()


@pytest.fixture
def open_stream(spool_dir: Path) -> Iterator[Callable[..., RunStream]]:
    """Opens streams that are quick in everything; closes them after the test."""
    opened: list[RunStream] = []

    def start(url: str = "offline", *, pace: Pace = QUICK, **options: Any) -> RunStream:
        on_alert = options.pop("on_alert", None)
        header = options.pop("header", {"project": "tests"})
        run_id = options.pop("run_id", None) or identity.new_run_id()
        patience = options.pop("patience", IMPATIENT)
        settings = Settings.resolve(url, spool_dir=options.pop("spool_dir", spool_dir), **options)
        stream = RunStream(settings, run_id, header, on_alert, pace=pace, patience=patience)
        opened.append(stream)
        return stream

    yield start
    for stream in opened:
        stream.close("failed", 0.0)
