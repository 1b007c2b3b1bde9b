"""Ids sort by time; facts of process and machine are read without any framework."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from trainsanity import identity


def test_run_ids_are_uuids_of_version_7_that_carry_the_time() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(identity.new_run_id())
    after = time.time_ns() // 1_000_000

    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= after


def test_run_ids_differ() -> None:
    assert len({identity.new_run_id() for _ in range(1000)}) == 1000


def test_one_session_for_each_process() -> None:
    code = "from trainsanity import identity; print(identity.session_id())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert identity.session_id() == identity.session_id()
    assert other.stdout.strip() != identity.session_id()


def test_knows_living_from_dead_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert identity.process_started(child.pid) is not None
        child.kill()

    assert identity.process_started(child.pid) is None
    assert identity.process_started(os.getpid()) is not None


def test_reads_the_commit_of_a_repository(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")

    assert identity.git_commit(tmp_path) == git("log", "-1", "--format=%H")


def test_has_no_commit_outside_of_a_repository(tmp_path: Path) -> None:
    assert identity.git_commit(tmp_path) is None
    assert identity.git_commit(tmp_path / "missing") is None


def test_lists_versions_without_importing() -> None:
    code = (
        "import sys; from trainsanity import identity; facts = identity.environment();"
        "assert facts['packages']['numpy'] and facts['python'] and facts['host'];"
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_leaves_out_packages_that_are_missing() -> None:
    assert identity.package_versions(["numpy", "no-such-package-anywhere"]).keys() == {"numpy"}
