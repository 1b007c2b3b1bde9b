"""`trainsanity serve` and `db upgrade`: a clear word for all that can go wrong."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
import urllib3
from command_line import served, trainsanity

HTTP = urllib3.PoolManager(timeout=60.0)  # the machine may be busy


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_server_tells_its_address_answers_there_and_stops_in_order(tmp_path: Path, with_signal):
    with served(tmp_path / "runs.db") as server:
        assert HTTP.request("GET", f"{server.url}/livez").status == 200
        assert server.stop(with_signal) == 0
        assert "Stopped." in server.process.stdout.read()


def test_a_job_in_the_background_says_that_it_has_stopped_too(tmp_path: Path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start such jobs
    try:
        with served(tmp_path / "runs.db") as server:
            assert server.stop(signal.SIGINT) == 0
            assert "Stopped." in server.process.stdout.read()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_open_page_does_not_hold_up_the_end(tmp_path: Path, capfd):
    with served(tmp_path / "runs.db") as server:
        live = HTTP.request("GET", f"{server.url}/live?watch=*", preload_content=False)
        assert b"ready" in live.read1(100)
        assert server.stop() == 0
        assert live.read() == b""
    assert capfd.readouterr().err == ""


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.parametrize(("setting", "least"), [({}, 10), ({"TRAINSANITY_NICENESS": "0"}, 0)])
def test_a_training_on_the_same_machine_goes_first(tmp_path: Path, setting, least):
    with served(tmp_path / "runs.db", **setting) as server:
        assert psutil.Process(server.process.pid).nice() == max(least, os.nice(0))


@pytest.mark.skipif(
    not (AUTOGROUP.exists() and AUTOGROUP.read_text("ascii")),
    reason="this kernel does not group by session",
)
def test_a_server_with_a_session_of_its_own_gives_way_to_other_sessions(tmp_path: Path):
    before = AUTOGROUP.read_text("ascii")
    with served(tmp_path / "runs.db", own_session=True) as server:
        group = Path(f"/proc/{server.process.pid}/autogroup").read_text("ascii")
        assert group.split()[-1] == "10", group
    with served(tmp_path / "runs.db"):
        assert AUTOGROUP.read_text("ascii") == before  # the group is ours too


def test_a_port_in_use_is_named(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = trainsanity("serve", "--port", str(port), "--db", f"sqlite:///{tmp_path}/runs.db")
    assert done.status == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.err
    assert "Traceback" not in done.err


def test_other_machines_are_not_served_without_a_key(tmp_path: Path):
    done = trainsanity("serve", "--host", "0.0.0.0", "--db", f"sqlite:///{tmp_path}/runs.db")
    assert done.status == 2
    assert "TRAINSANITY_API_KEYS" in done.err


def test_other_machines_are_served_with_a_key(tmp_path: Path):
    with served(tmp_path / "runs.db", "--host", "0.0.0.0", TRAINSANITY_API_KEYS="k3y") as server:
        done = trainsanity("runs", "--url", server.url)
        assert (done.status, "TRAINSANITY_API_KEY" in done.err) == (2, True)
        assert trainsanity("runs", "--url", server.url, "--api-key", "k3y").status == 0
        assert trainsanity("runs", "--url", server.url, TRAINSANITY_API_KEY="k3y").status == 0
        assert trainsanity("runs", "--url", server.url, "--api-key", "wrong").status == 2


def test_a_host_that_is_none_is_told(tmp_path: Path):
    database = f"sqlite:///{tmp_path}/runs.db"
    done = trainsanity("serve", "--host", "256.1.1.1", "--db", database, TRAINSANITY_API_KEYS="k")
    assert done.status == 2
    assert "256.1.1.1" in done.err


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("TRAINSANITY_BASE_URL", "ftp://here", "TRAINSANITY_BASE_URL: must begin with http://"),
        ("TRAINSANITY_MUTE_HOURS", "soon", "parse string as a number. Received: 'soon'"),
        ("TRAINSANITY_DATABASE_URL", "mysql://x", "TRAINSANITY_DATABASE_URL: must begin with"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_received(setting, value, expected):
    done = trainsanity("serve", "--port", "0", **{setting: value})
    assert done.status == 2
    assert expected in done.err
    assert "Traceback" not in done.err


def test_a_path_that_pages_have_already_is_refused_in_one_sentence(tmp_path: Path):
    database, public = f"sqlite:///{tmp_path}/runs.db", "https://team.example/runs"
    done = trainsanity("serve", "--port", "0", "--db", database, TRAINSANITY_BASE_URL=public)
    assert done.status == 2
    assert "TRAINSANITY_BASE_URL must not begin with /runs" in done.err
    assert "Traceback" not in done.err


def test_a_database_that_is_a_bare_path_is_told_how_to_write_it():
    done = trainsanity("serve", "--port", "0", "--db", "runs.db")
    assert done.status == 2
    assert "--db: must begin with sqlite:/// or postgresql://" in done.err
    assert "Received: 'runs.db'" in done.err


def test_a_variable_that_is_no_setting_is_named_without_its_value():
    done = trainsanity("serve", "--db", "mysql://x", TRAINSANITY_SLACK_WEBHOOK="https://s3cr3t")
    assert "TRAINSANITY_SLACK_WEBHOOK is no setting of this server and is not read." in done.err
    assert "Is TRAINSANITY_SLACK_WEBHOOK_URL meant?" in done.err
    assert "s3cr3t" not in done.err


def test_a_database_out_of_reach_is_told_without_its_password():
    done = trainsanity("serve", "--port", "0", "--db", "postgresql://me:s3cr3t@127.0.0.1:1/runs")
    assert done.status == 2
    assert "postgresql+psycopg://me:***@127.0.0.1:1/runs cannot be used" in done.err
    assert "s3cr3t" not in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_no_database_is_told(tmp_path: Path):
    wrong = tmp_path / "notes.txt"
    wrong.write_text("no database " * 100)
    done = trainsanity("serve", "--port", "0", "--db", f"sqlite:///{wrong}")
    assert done.status == 2
    assert f"{wrong} cannot be used" in done.err
    assert wrong.read_text() == "no database " * 100


def test_upgrade_brings_a_new_database_up_to_date_and_says_so(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/runs.db"
    assert trainsanity("db", "upgrade", "--db", url).out == f"{url} has been brought up to date.\n"
    assert trainsanity("db", "upgrade", "--db", url).out == f"{url} is up to date.\n"


def test_a_webhook_that_leads_elsewhere_is_off_from_the_start(tmp_path: Path):
    webhook = "https://evil.example/x"
    with served(tmp_path / "runs.db", TRAINSANITY_SLACK_WEBHOOK_URL=webhook) as server:
        channel = HTTP.request("GET", f"{server.url}/api/v1/channels").json()["channels"][0]
        assert channel["state"] == "off"
        assert "hooks.slack.com" in channel["off_reason"]
