"""Commands about runs, on a real server that holds a good run and a bad one.

The runs get there as a user's would: spooled to disk, then `trainsanity sync`.
"""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, Served, clean_environment, served, trainsanity

from trainsanity import identity, wire
from trainsanity.spool import Spool

STEPS = 12_000  # more than a server gives out unthinned at once


@dataclass(frozen=True)
class Cast:
    """The server and the ids of its runs."""

    server: Served
    good: str
    bad: str
    endless: str


def spool_run(
    folder: Path, name: str, applied: float, *, state: str = "finished", steps: int = STEPS
) -> str:
    """A run whose declared learning rate is 0.1."""
    run_id = identity.new_run_id()
    at = np.arange(1, steps + 1)
    loss = 1.0 / at
    loss[6] = math.nan
    values = np.stack([np.full(steps, 0.1), np.full(steps, applied), loss])
    names = ("learning_rate/declared", "learning_rate/applied", "loss/reported")
    header = {"project": "cli", "name": name, "tags": ["night"], "config": {"layers": 3}}
    first = wire.Packet(
        run_id,
        0,
        time.time(),
        run=header,
        signals=[wire.Signal(name, "1") for name in names],
        audits=[wire.Audit("environment", 0, {"keras": "3.15.1", "limit": math.inf})],
    )
    second = wire.Packet(
        run_id, 1, time.time(), steps, state, blocks=[wire.Block(names, at, values)]
    )
    with closing(Spool(folder / f"{run_id}.spool")) as spool:
        spool.append(wire.encode(first))
        spool.append(wire.encode(second))
    return run_id


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    folder = tmp_path_factory.mktemp("cli")
    spool = folder / "spool"
    with served(folder / "runs.db") as server:
        good = spool_run(spool, "good", applied=0.1)
        bad = spool_run(spool, "bad", applied=0.2)
        endless = spool_run(spool, "endless", applied=0.1, state="running", steps=10)
        sent = trainsanity("sync", spool, "--url", server.url)
        assert sent.status == 0, sent.err
        for run in (good, bad):  # settled, so that each test sees the same
            trainsanity("alerts", run, "--fail-on", "advice", "--url", server.url)
        yield Cast(server, good, bad, endless)


def ask(cast: Cast, *arguments: str):
    return trainsanity(*arguments, "--url", cast.server.url)


# sync


def test_sync_sends_what_was_spooled_and_says_where_it_is(cast: Cast, tmp_path: Path):
    run = spool_run(tmp_path, "late", applied=0.1, steps=10)
    done = ask(cast, "sync", str(tmp_path))
    assert done.status == 0
    assert done.rows[0] == [run, "delivered", "2", "0", f"{cast.server.url}/runs/{run}"]
    assert ask(cast, "runs", "--json").json[0]["id"] == run
    assert ask(cast, "sync", str(tmp_path)).out == "nothing to send\n"


def test_sync_keeps_what_it_cannot_send(tmp_path: Path):
    spool_run(tmp_path, "late", applied=0.1, steps=10)
    done = trainsanity("sync", tmp_path, "--url", "http://127.0.0.1:1", "--json")
    assert done.status == 2
    assert (done.json[0]["outcome"], done.json[0]["pending"]) == ("waiting", 2)
    assert len(list(tmp_path.glob("*.spool"))) == 1


def test_doctor_points_to_runs_that_were_not_sent(cast: Cast, tmp_path: Path):
    spool_run(tmp_path, "late", applied=0.1, steps=10)
    done = trainsanity(
        "doctor", "--url", cast.server.url, "--json", TRAINSANITY_SPOOL_DIR=str(tmp_path)
    )
    unsent = done.json[-1]
    assert (unsent["state"], unsent["advice"]) == (
        "warn",
        f"Send them: trainsanity sync {tmp_path} --url {cast.server.url}",
    )


# runs


def test_runs_are_listed_with_their_alerts(cast: Cast):
    rows = {row[1]: row for row in ask(cast, "runs", "--project", "cli").rows}
    assert rows["bad"][2:5] == ["cli", "finished", str(STEPS)]
    assert rows["bad"][5:] == ["1", "-", "-"]
    assert rows["good"][5:] == ["-", "-", "-"]


def test_runs_as_json_are_those_of_the_api(cast: Cast):
    by_name = {run["name"]: run for run in ask(cast, "runs", "--json").json}
    assert by_name["bad"]["alert_counts"] == {"critical": 1, "warning": 0, "advice": 0}
    assert by_name["bad"]["settled"] is True


def test_runs_may_be_narrowed(cast: Cast):
    assert {run["state"] for run in ask(cast, "runs", "--state", "running", "--json").json} == {
        "running"
    }
    assert len(ask(cast, "runs", "--limit", "1", "--json").json) == 1
    assert ask(cast, "runs", "--project", "nowhere").out == "no runs\n"


# alerts


@pytest.mark.parametrize("how", ["id", "beginning", "name"])
def test_a_run_is_found_by_id_by_the_beginning_of_it_and_by_name(cast: Cast, how: str):
    wanted = {"id": cast.bad, "beginning": cast.bad[:-8], "name": "bad"}[how]
    done = ask(cast, "alerts", wanted, "--json")
    assert [alert["rule"] for alert in done.json] == ["lr-effective-mismatch"]


def test_an_alert_is_told_with_both_numbers(cast: Cast):
    done = ask(cast, "alerts", cast.bad)
    assert done.status == 0
    assert done.out.startswith("CRITICAL (open): ")
    for words in ("0.1", "0.2", "What to do: ", "Rule: lr-effective-mismatch", "Since step 1"):
        assert words in done.out


def test_a_good_run_has_no_alerts(cast: Cast):
    assert ask(cast, "alerts", cast.good).out == "no alerts\n"


def test_fail_on_fails_a_build_for_an_alert_that_is_bad_enough(cast: Cast):
    assert ask(cast, "alerts", cast.bad, "--fail-on", "critical").status == 1
    assert ask(cast, "alerts", cast.bad, "--fail-on", "advice").status == 1
    assert ask(cast, "alerts", cast.good, "--fail-on", "advice").status == 0


def test_fail_on_says_nothing_of_a_run_that_goes_on(cast: Cast):
    done = ask(cast, "alerts", cast.endless, "--fail-on", "critical", "--wait", "0")
    assert done.status == 2
    assert "is running" in done.err
    assert "--wait" in done.err


def test_a_name_of_several_runs_is_not_guessed(cast: Cast, tmp_path: Path):
    ids = [spool_run(tmp_path, "twin", applied=0.1, steps=10) for _ in range(2)]
    ask(cast, "sync", str(tmp_path))
    done = ask(cast, "alerts", "twin")
    assert done.status == 2
    assert all(run_id in done.err for run_id in ids)


def test_the_longest_name_is_found(cast: Cast, tmp_path: Path):
    name = "long " * 51
    run_id = spool_run(tmp_path, name.strip(), applied=0.1, steps=10)
    ask(cast, "sync", str(tmp_path))
    done = ask(cast, "export", name.strip(), "-o", str(tmp_path / "run.json"))
    assert (done.status, done.err) == (0, "")
    assert run_id in (tmp_path / "run.json").read_text()


def test_an_address_with_too_much_behind_it_is_told(cast: Cast):
    done = trainsanity("runs", "--url", f"{cast.server.url}/runs")
    assert done.status == 2
    assert f"Is {cast.server.url}/runs the address of the server" in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_output_that_cannot_be_written_is_no_alert(cast: Cast):
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "alerts", cast.bad, "--url", cast.server.url]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment()
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_run_is_told(cast: Cast):
    done = ask(cast, "alerts", "no-such-run")
    assert done.status == 2
    assert "'no-such-run'" in done.err


# delete


def test_a_run_is_deleted_and_only_that_one(cast: Cast, tmp_path: Path):
    gone, kept = (spool_run(tmp_path, name, applied=0.1, steps=10) for name in ("gone", "kept"))
    ask(cast, "sync", str(tmp_path))
    assert ask(cast, "delete", "gone", "--yes").out == f"deleted: gone ({gone})\n"
    left = {run["id"] for run in ask(cast, "runs", "--json").json}
    assert kept in left
    assert gone not in left


def test_nothing_is_deleted_without_a_yes_or_where_one_run_is_unknown(cast: Cast):
    asked = ask(cast, "delete", "good")
    assert (asked.status, "Delete good" in asked.out) == (1, True)
    assert ask(cast, "delete", "good", "no-such-run", "--yes").status == 2
    assert ask(cast, "alerts", "good").status == 0


# export


def check_samples(signals: dict[str, dict], steps: int) -> None:
    loss = signals["loss/reported"]
    assert loss["step"] == list(range(1, steps + 1))
    assert loss["value"][6] == "NaN"
    expected = np.delete(1.0 / np.arange(1, steps + 1), 6)
    found = np.delete(np.array(loss["value"], object), 6).astype(float)
    np.testing.assert_array_equal(found, expected)


def test_export_gives_everything_to_the_last_sample(cast: Cast, tmp_path: Path):
    path = tmp_path / "bad.json"
    assert ask(cast, "export", cast.bad, "-o", str(path)).status == 0
    document = json.loads(path.read_text())
    assert document["run"]["id"] == cast.bad
    assert document["audits"][0]["facts"] == {"keras": "3.15.1", "limit": "Infinity"}
    assert [alert["rule"] for alert in document["alerts"]] == ["lr-effective-mismatch"]
    assert {verdict["verdict"] for verdict in document["verdicts"]} >= {"alert", "not_testable"}
    assert len(document["signals"]) == 3
    check_samples({signal["name"]: signal for signal in document["signals"]}, STEPS)


def test_export_as_lines_says_the_same(cast: Cast):
    done = ask(cast, "export", cast.bad, "--format", "ndjson")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert found[0]["type"] == "run"
    assert {line["type"] for line in found} == {
        "run",
        "audit",
        "alert",
        "verdict",
        "signal",
        "samples",
    }
    columns: dict[str, dict] = {}
    for line in found:
        if line["type"] == "samples":
            column = columns.setdefault(line["name"], {"step": [], "value": []})
            column["step"] += line["step"]
            column["value"] += line["value"]
    check_samples(columns, STEPS)


def test_export_to_where_nothing_can_be_written_is_told(cast: Cast, tmp_path: Path):
    done = ask(cast, "export", "good", "-o", str(tmp_path / "nowhere" / "run.json"))
    assert done.status == 2
    assert "nowhere/run.json cannot be written: No such file or directory" in done.err


def test_export_leaves_no_half_a_file(cast: Cast, tmp_path: Path):
    path = tmp_path / "x.json"
    assert ask(cast, "export", "no-such-run", "-o", str(path)).status == 2
    assert list(tmp_path.iterdir()) == []


# judge --again


def test_judging_again_with_the_same_rules_changes_nothing(cast: Cast):
    done = trainsanity("judge", "--again", "bad", "--db", cast.server.database)
    assert (done.status, done.err) == (0, "")
    assert done.out == f"bad ({cast.bad}): nothing is different\n"


@pytest.fixture
def older(cast: Cast, tmp_path: Path) -> str:
    """The database as it would be had the rule not existed when the runs came in."""
    path = tmp_path / "older.db"
    source = sqlite3.connect(cast.server.database.removeprefix("sqlite:///"))
    copy = sqlite3.connect(path)
    with closing(source), closing(copy), copy:
        source.backup(copy)
        for table in ("verdicts", "alerts"):
            copy.execute(f"DELETE FROM {table} WHERE rule = 'lr-effective-mismatch'")
        copy.execute("DELETE FROM alert_transitions WHERE alert_id NOT IN (SELECT id FROM alerts)")
    return f"sqlite:///{path}"


def test_judging_again_shows_what_is_different(cast: Cast, older: str):
    done = trainsanity("judge", "--again", "bad", "--db", older)
    assert (done.status, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["bad", f"({cast.bad})"]
    assert lines[1] == ["before", "after"]
    assert lines[2] == ["lr-effective-mismatch", "-", "alert"]
    assert lines[3][0] == "lr-effective-mismatch:"
    assert lines[3][-2:] == ["-", "open"]


def test_judging_everything_again_as_json(cast: Cast, older: str):
    done = trainsanity("judge", "--again", "--all", "--json", "--db", older)
    by_run = {difference["run_id"]: difference for difference in done.json}
    assert by_run[cast.bad]["verdicts"] == [
        {"what": "lr-effective-mismatch", "before": "", "after": "alert"}
    ]
    assert cast.endless not in by_run


def test_judging_again_wants_a_run(cast: Cast):
    done = trainsanity("judge", "bad", "--db", cast.server.database)
    assert done.status == 2
    assert "--again" in done.err
    done = trainsanity("judge", "--again", "nothing", "--db", cast.server.database)
    assert (done.status, "'nothing'" in done.err) == (2, True)


def test_a_database_that_is_not_there_is_told_and_not_made(tmp_path: Path):
    file = tmp_path / "typo.db"
    done = trainsanity("judge", "--again", "--all", "--db", f"sqlite:///{file}")
    assert done.status == 2
    assert f"there is no database at sqlite:///{file}" in done.err
    assert not file.exists()


def test_a_database_that_is_behind_is_not_judged(tmp_path: Path):
    (tmp_path / "new.db").touch()  # without any table
    done = trainsanity("judge", "--again", "x", "--db", f"sqlite:///{tmp_path}/new.db")
    assert done.status == 2
    assert "trainsanity db upgrade" in done.err
