"""Who is running: ids of run and process, host, git commit, versions. Imports no framework."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import secrets
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

# What changes numbers when it is upgraded.
WATCHED_PACKAGES = (
    "trainsanity",
    "keras",
    "tensorflow",
    "jax",
    "jaxlib",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "ml-dtypes",
    "keras-hub",
    "keras-tuner",
    "tensorflow-datasets",
    "optree",
    "h5py",
)
VERSION = re.compile(r"^Version: *(\S+)", re.MULTILINE)
GIT_SECONDS = 2.0  # a repository on a sleeping network disk must not hold up training


def new_run_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by the millisecond it was made in."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (2**48 - 1)) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))


def session_id() -> str:
    """The same for all runs of this process, another one in a forked child."""
    return _session_of(os.getpid())


@functools.cache
def _session_of(_pid: int) -> str:
    return new_run_id()


def host() -> str:
    return socket.gethostname()


def process_started(pid: int) -> float | None:
    """Seconds since the epoch at which the process began; None where there is none (any more)."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0.0  # it lives, and is none of ours


def git_commit(folder: Path | None = None) -> str | None:
    """The commit checked out in the folder (default: the working directory), if there is one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def package_versions(names: Iterable[str] = WATCHED_PACKAGES) -> dict[str, str]:
    """Versions of those that are installed, read from their metadata: nothing is imported."""
    versions = {}
    for name in names:
        try:
            # One line of many: `importlib.metadata.version` takes all apart, four times as long.
            text = importlib.metadata.distribution(name).read_text("METADATA") or ""
            found = VERSION.search(text)
            versions[name] = found[1] if found else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def environment() -> dict[str, Any]:
    """The part of the `environment` audit that needs no framework."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": host(),
        "git_commit": git_commit(),
        "packages": package_versions(),
    }
