"""Real trainings, each in a process of its own, on servers that fail in one way or another: same
weights, same exit status, and nobody but the sender waits for the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import clean_environment
from faults import FAULTS, OVERCOME
from loopback import LONG

PROGRAM = Path(__file__).with_name("trainings.py")
SERVERS = {**FAULTS, **OVERCOME}
FAILING_SECONDS = 1.0  # that the end may take: all of it, where the server never has the run
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    """What each training says of itself, with its exit status."""
    folder = tmp_path_factory.mktemp("trainings")
    with contextlib.ExitStack() as stack:
        servers = {
            name: (stack.enter_context(serve()), FAILING_SECONDS if name in FAULTS else LONG)
            for name, serve in SERVERS.items()
        }
        statuses = run(folder, {"plain": ("", 0.0), **servers})
    return {
        name: {**json.loads((folder / f"{name}.json").read_text()), "status": status}
        for name, status in statuses.items()
    }


def run(folder: Path, servers: dict[str, tuple[str, float]]) -> dict[str, int]:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), json.dumps(servers), "2"],
        env=clean_environment(KERAS_BACKEND="tensorflow"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            output, _ = parent.communicate(timeout=200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)  # it, and what it has forked
    assert parent.returncode == 0
    statuses: dict[str, int] = json.loads(output.splitlines()[-1])
    return statuses


@pytest.mark.parametrize("name", SERVERS)
def test_a_training_goes_and_ends_as_without_a_monitor(
    name: str, trainings: dict[str, Facts]
) -> None:
    plain, watched = trainings["plain"], trainings[name]
    assert watched["digest"] == plain["digest"]
    assert watched["status"] == plain["status"] == 0
    assert watched["spools"] == (name in FAULTS), "what could not be sent waits in the spool"


@pytest.mark.parametrize("name", SERVERS)
def test_only_the_end_of_a_training_waits_and_not_for_long(
    name: str, trainings: dict[str, Facts]
) -> None:
    """The sender alone opens connections, and nobody waits for it before the last batch."""
    watched = trainings[name]
    assert watched["calling"] == ["trainsanity-send"]
    ((batches, seconds),) = watched["waits"]
    assert batches == watched["batches"]
    assert seconds <= watched["close_timeout"]
