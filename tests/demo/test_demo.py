"""The README's first command, for real: server, four trainings, alerts, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from trainsanity.rules import all_rules
from trainsanity_server.demo.stories import STORIES, scripts_folder

pytestmark = pytest.mark.timeout(900)

LONG = 300  # seconds that nothing here lasts, also on a busy machine
PLUS, ADD, EMBEDDING, RATE = (story.run_name for story in STORIES)


def _held_port() -> socket.socket:
    """A port that the system gives to nobody else, and on which a server may listen."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


class Demo:
    """A running `trainsanity demo`, as a terminal would start it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._holder = _held_port()
        port = self._holder.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.output: list[str] = []
        command = [sys.executable, "-m", "trainsanity", "demo", "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--db", f"sqlite:///{folder / 'demo.db'}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TRAINSANITY_SPOOL_DIR": str(folder / "spool")},
        )

    def read_until(self, wanted: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            if wanted in line:
                return
        pytest.fail(f"the demo ended before it said {wanted!r}:\n" + "\n".join(self.output))

    def started(self) -> list[psutil.Process]:
        """Every process that it has started and that runs now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def get(self, path: str) -> Any:
        return httpx2.get(self.url + path, trust_env=False, timeout=LONG).raise_for_status().json()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=LONG)
        self.output += rest.splitlines()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            for process in (*self.started(), self.process):
                process.kill()
        self.process.communicate()
        self._holder.close()


@dataclass
class Seen:
    """What a visitor found in a demo from its first line to its last."""

    url: str
    output: list[str] = field(default_factory=list)
    runs: dict[str, Any] = field(default_factory=dict)
    alerts: dict[str, list[Any]] = field(default_factory=dict)
    verdicts: dict[str, list[Any]] = field(default_factory=dict)
    started: list[psutil.Process] = field(default_factory=list)
    exit_status: int = -1

    def rules_that_spoke(self, name: str, *severities: str) -> dict[str, Any]:
        return {a["rule"]: a for a in self.alerts[name] if a["severity"] in severities}

    def line(self, name: str) -> str:
        """The last line that tells of this run."""
        return next(line for line in reversed(self.output) if line.startswith(f"{name}: "))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        demo.read_until("Ctrl-C stops it")
        seen = Seen(demo.url)
        for run in demo.get("/api/v1/runs?project=demo")["runs"]:
            seen.runs[run["name"]] = run
            seen.alerts[run["name"]] = demo.get(f"/api/v1/runs/{run['id']}/alerts")["alerts"]
            seen.verdicts[run["name"]] = demo.get(f"/api/v1/runs/{run['id']}/verdicts")["verdicts"]
        seen.started = demo.started()
        seen.exit_status = demo.end(signal.SIGINT)
        seen.output = demo.output
        yield seen
    finally:
        demo.close()


def test_trains_four_runs_to_their_end(seen: Seen) -> None:
    assert set(seen.runs) == {PLUS, ADD, EMBEDDING, RATE}
    assert {run["state"] for run in seen.runs.values()} == {"finished"}
    assert all(run["settled"] for run in seen.runs.values())


def test_every_rule_gives_a_verdict_on_every_run(seen: Seen) -> None:
    slugs = {rule.id for rule in all_rules()}
    for name, rows in seen.verdicts.items():
        assert {row["rule"] for row in rows} == slugs, name
        assert all(row["reason"] for row in rows if row["verdict"] == "not_testable"), name


def _line_of(script: str, code: str) -> int:
    lines = (scripts_folder() / script).read_text(encoding="utf-8").splitlines()
    return lines.index(code) + 1


def test_names_the_line_at_which_the_mask_died(seen: Seen) -> None:
    alert = seen.rules_that_spoke(PLUS, "critical")["mask-coverage-mismatch"]
    site = f"residual_plus.py:{_line_of('residual_plus.py', 'x = x + y')}"
    assert site in alert["title"] + alert["message"]
    value = {w["name"]: float(w["value"]) for w in alert["witnesses"]}
    shown, true = (w["name"] for w in alert["witnesses"][:2])
    assert (shown, true) in {
        ("accuracy/reported", "accuracy/unmasked"),
        ("loss/reported", "loss/unmasked"),
    }
    assert value[shown] != pytest.approx(value[true], rel=0.05)
    assert value["mask/loss_coverage"] == 1.0
    assert value["mask/input_coverage"] < 0.2


def test_says_nothing_about_the_healthy_run(seen: Seen) -> None:
    assert seen.rules_that_spoke(ADD, "critical", "warning") == {}


def test_finds_the_embedding_that_is_too_small(seen: Seen) -> None:
    alert = seen.rules_that_spoke(EMBEDDING, "critical")["index-range"]
    assert "embedding" in alert["subject"]
    assert "mask-coverage-mismatch" not in seen.rules_that_spoke(EMBEDDING, "critical", "warning")


def test_finds_the_learning_rate_and_the_weights_that_are_not_used(seen: Seen) -> None:
    spoke = seen.rules_that_spoke(RATE, "critical", "warning")
    assert spoke["lr-effective-mismatch"]["severity"] == "critical"
    said = {row["rule"]: row for row in seen.verdicts[RATE]}
    assert "weighted-naive-disagreement" in spoke, said["weighted-naive-disagreement"]


@pytest.mark.parametrize("name", [story.run_name for story in STORIES])
def test_ends_with_one_line_per_run_that_says_where_to_look(seen: Seen, name: str) -> None:
    line = seen.line(name)
    assert "Keras reported" in line
    assert "true:" in line
    assert "not measured" not in line
    assert line.endswith(f"{seen.url}/runs/{seen.runs[name]['id']}")


def test_accuracy_of_the_lost_mask_is_told_beside_the_true_one(seen: Seen) -> None:
    shown, true = (float(x) for x in re.findall(r"\b\d\.\d{3}\b", seen.line(PLUS))[:2])
    assert shown > true + 0.05


def test_accuracy_of_the_healthy_run_is_the_true_one(seen: Seen) -> None:
    shown, true = (float(x) for x in re.findall(r"\b\d\.\d{3}\b", seen.line(ADD))[:2])
    assert shown == pytest.approx(true, abs=0.002)


def test_ctrl_c_stops_everything_it_started(seen: Seen) -> None:
    assert seen.exit_status == 0
    assert seen.started, "the server ran"
    assert _survivors(seen.started) == []


def _survivors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=LONG)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_can_be_stopped_in_the_middle_of_a_training(tmp_path: Path, number: signal.Signals) -> None:
    demo = Demo(tmp_path)
    try:
        demo.read_until("Training 1 of 4")
        demo.read_until("watching this run")
        started = demo.started()
        assert demo.end(number) == 0
        assert len(started) >= 2, "server and training ran"
        assert _survivors(started) == []
        assert not any("Traceback" in line for line in demo.output)
    finally:
        demo.close()


def test_a_port_in_use_is_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "trainsanity", "demo", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=LONG,
        )
    assert result.returncode != 0
    assert f"port {port}" in result.stderr
    assert f"--port {port + 1}" in result.stderr
    assert 'make demo ARGS="--port' in result.stderr
    assert "Traceback" not in result.stderr
