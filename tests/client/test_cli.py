"""Commands that need no run: the catalogue of rules, the doctor, and errors in plain words."""

from __future__ import annotations

import subprocess
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from command_line import clean_environment, served, trainsanity

from trainsanity import doctor
from trainsanity.columns import table
from trainsanity.rules import all_rules
from trainsanity.settings import Settings

NOBODY = "http://127.0.0.1:1"


def test_help_lists_the_commands_of_client_and_server():
    done = trainsanity("--help")
    assert done.status == 0
    for command in ("alerts", "db", "demo", "doctor", "export", "rules", "runs", "serve", "sync"):
        assert f"\n  {command} " in done.out
    assert "..." not in done.out.partition("Commands:")[2], "a line that is cut tells half"


def test_version_is_told():
    assert trainsanity("--version").out.startswith("trainsanity, version 0.")


def test_without_the_servers_packages_serve_says_what_to_install():
    program = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "sys.argv = ['trainsanity', 'serve', '--port', '1']\n"
        "from trainsanity.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'trainsanity[server]'" in done.stderr
    assert "Traceback" not in done.stderr


# Rules


def test_the_catalogue_lists_every_rule():
    listed = trainsanity("rules", "--json").json
    assert [rule["id"] for rule in listed] == [rule.id for rule in all_rules()]
    assert [row[0] for row in trainsanity("rules").rows] == [rule.id for rule in all_rules()]


def test_one_rule_is_explained_with_its_thresholds():
    rule = next(rule for rule in all_rules() if vars(rule))
    done = trainsanity("rules", rule.id)
    for word in (rule.id, rule.severity, "Compares:", "Why:", "Try:", "Source:", *vars(rule)):
        assert word in done.out


def test_a_slip_in_a_rules_name_is_met_with_near_names():
    done = trainsanity("rules", "mask-covrage-mismatch")
    assert done.status == 2
    assert "mask-coverage-mismatch" in done.err


def test_a_part_of_names_is_met_with_all_that_have_it():
    done = trainsanity("rules", "mask-")
    for rule in all_rules():
        assert (rule.id in done.err) == ("mask-" in rule.id)


# Servers that are not there


@pytest.mark.parametrize("command", [["runs"], ["alerts", "x"], ["export", "x"]])
def test_a_server_that_is_away_is_told_in_one_sentence(command: list[str]):
    done = trainsanity(*command, "--url", NOBODY)
    assert done.status == 2
    assert f"no trainsanity server answers at {NOBODY} (Connection refused)" in done.err
    assert "trainsanity serve" in done.err
    assert "Traceback" not in done.err


def test_an_address_that_is_none_is_told():
    done = trainsanity("runs", "--url", "somewhere")
    assert done.status == 2
    assert "somewhere" in done.err


def test_offline_is_no_server():
    assert trainsanity("runs", "--url", "offline").status == 2


def test_the_address_may_come_from_the_environment():
    done = trainsanity("runs", TRAINSANITY_URL=NOBODY)
    assert NOBODY in done.err


# The doctor


@pytest.fixture
def stranger():
    """A web server that is none of ours, and whose clock is an hour slow."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def checked(url: str, spool: Path, **environ: str) -> dict[str, doctor.Result]:
    settings = Settings.resolve(url, spool_dir=spool)
    return {result.name: result for result in doctor.run(settings, environ=environ)}


def test_doctor_finds_a_good_machine_good(tmp_path: Path):
    with served(tmp_path / "runs.db") as server:
        done = trainsanity(
            "doctor", "--url", server.url, "--json", TRAINSANITY_SPOOL_DIR=f"{tmp_path}/spool"
        )
    assert done.status == 0
    states = {row["name"]: row["state"] for row in done.json}
    assert set(states.values()) == {"ok"}
    assert set(states) == {
        "python",
        "keras",
        "backend",
        "server",
        "key",
        "clock",
        "spool",
        "unsent runs",
    }


def test_doctor_fails_where_no_server_answers(tmp_path: Path):
    done = trainsanity("doctor", "--url", NOBODY, TRAINSANITY_SPOOL_DIR=f"{tmp_path}/spool")
    assert done.status == 1
    assert "fail  server" in done.out
    assert "trainsanity serve" in done.out


def test_doctor_tells_a_stranger_from_a_server(stranger: str, tmp_path: Path):
    found = checked(stranger, tmp_path)
    assert found["key"].state == "fail"
    assert "no trainsanity server" in found["key"].advice


def test_doctor_notices_a_clock_that_is_off(stranger: str, tmp_path: Path):
    clock = checked(stranger, tmp_path)["clock"]
    assert clock.state == "warn"
    assert "ahead of" in clock.found
    assert "NTP" in clock.advice


def test_doctor_fails_where_the_spool_cannot_be_written(tmp_path: Path):
    (tmp_path / "spool").write_text("a file, no folder")
    spool = checked("offline", tmp_path / "spool")["spool"]
    assert spool.state == "fail"
    assert "TRAINSANITY_SPOOL_DIR" in spool.advice


def test_doctor_knows_which_backends_are_watched(tmp_path: Path):
    assert checked("offline", tmp_path, KERAS_BACKEND="jax")["backend"].state == "ok"
    unknown = checked("offline", tmp_path, KERAS_BACKEND="openvino")["backend"]
    assert unknown.state == "fail"
    assert "openvino" in unknown.found


def test_doctor_reads_the_backend_that_keras_has_written_down(tmp_path: Path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    backend = checked("offline", tmp_path / "spool", KERAS_HOME=str(tmp_path))["backend"]
    assert backend.found.startswith("torch ")


# Tables


def test_columns_are_aligned():
    assert table(("run", "state"), [("a", "finished"), ("層層", "silent")]) == [
        "RUN   STATE",
        "a     finished",
        "層層  silent",
    ]


def test_a_name_does_nothing_to_the_terminal():
    assert table(("name",), [("\x1b[2J\r\n",)]) == ["NAME", "�[2J��"]


def test_the_module_is_the_command_line_too():
    done = subprocess.run(
        [sys.executable, "-m", "trainsanity", "--version"],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
