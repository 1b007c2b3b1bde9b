"""Looks whether this machine is fit to be watched, and says what to do where it is not."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainsanity.errors import SpoolError
from trainsanity.keras_versions import LOWEST_KERAS, NEWEST_KERAS, minor_version
from trainsanity.remote import Remote, RemoteError
from trainsanity.settings import Settings, url_option
from trainsanity.spool import Spool, spools

LOWEST_PYTHON = (3, 11)
BACKENDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}
SKEW_SECONDS = 5.0  # the Date header tells whole seconds, and a request takes some time


@dataclass(frozen=True)
class Result:
    """One line: what was looked at, how it is ("ok", "warn" or "fail"), and what to do."""

    name: str
    state: str
    found: str
    advice: str = ""


def run(
    settings: Settings,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Iterator[Result]:
    """Every check, one after the other, as its answer comes in."""
    yield _python()
    yield _keras()
    yield _backend(environ)
    yield from _server(settings, clock)
    yield _spool_folder(settings.spool_dir)
    yield _pending(settings)


def _python() -> Result:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= LOWEST_PYTHON:
        return Result("python", "ok", found)
    return Result("python", "fail", found, "Python 3.11 or newer is needed.")


def _keras() -> Result:
    found = _version("keras")
    if found is None:
        return Result("keras", "warn", "not installed", "Runs are watched where Keras trains.")
    minor = minor_version(found)
    lowest, newest = (".".join(map(str, v)) for v in (LOWEST_KERAS, NEWEST_KERAS))
    if minor < LOWEST_KERAS:
        return Result("keras", "fail", found, f"Keras {lowest} or newer is needed.")
    if minor > NEWEST_KERAS:
        return Result("keras", "warn", found, f"Tested up to {newest}; newer ones may differ.")
    return Result("keras", "ok", found)


def _backend(environ: Mapping[str, str]) -> Result:
    name = _chosen_backend(environ)
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        return Result("backend", "fail", name, f"Watched backends: {known}. Set KERAS_BACKEND.")
    found = _version(BACKENDS[name])
    if found is not None:
        return Result("backend", "ok", f"{name} {found}")
    if _version("keras") is None:
        return Result("backend", "warn", f"{name} is not installed")
    return Result("backend", "fail", f"{name} is not installed", "Install it or set KERAS_BACKEND.")


def _chosen_backend(environ: Mapping[str, str]) -> str:
    """As Keras chooses: the variable, then its configuration file, then TensorFlow."""
    if environ.get("KERAS_BACKEND"):
        return environ["KERAS_BACKEND"]
    home = Path(environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        return str(json.loads((home / "keras.json").read_text("utf-8"))["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def _server(settings: Settings, clock: Callable[[], float]) -> Iterator[Result]:
    if settings.is_offline:
        yield Result(
            "server", "ok", "offline: runs are spooled", "Send them by `trainsanity sync`."
        )
        return
    remote = Remote(settings.url, settings.api_key)
    try:
        sent = clock()
        response = remote.request("/livez")
    except RemoteError as error:
        yield Result("server", "fail", "", str(error))
        return
    if response.status != 200:
        found = f"{settings.url} answers /livez with {response.status}"
        yield Result("server", "fail", found, "Is it a trainsanity server?")
        return
    yield Result("server", "ok", settings.url)
    yield _key(remote, settings)
    yield _clock_skew(response.headers.get("Date"), (sent + clock()) / 2)


def _key(remote: Remote, settings: Settings) -> Result:
    try:
        remote.get("/runs", limit=1)
    except RemoteError as error:
        return Result("key", "fail", "", str(error))
    if settings.api_key:
        return Result("key", "ok", "accepted")
    return Result("key", "ok", "none needed")


def _clock_skew(date: str | None, now: float) -> Result:
    try:
        skew = parsedate_to_datetime(date or "").timestamp() + 0.5 - now
    except ValueError:
        return Result("clock", "warn", "the server tells no time")
    if abs(skew) <= SKEW_SECONDS:
        return Result("clock", "ok", f"within {SKEW_SECONDS:g} s of the server's")
    side = "behind" if skew > 0 else "ahead of"
    advice = "Times of runs will look wrong: set the clock, e.g. by NTP."
    return Result("clock", "warn", f"{abs(skew):.0f} s {side} the server's", advice)


def _spool_folder(folder: Path) -> Result:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror})"
        return Result("spool", "fail", found, "Choose another with TRAINSANITY_SPOOL_DIR.")
    return Result("spool", "ok", str(folder))


def _pending(settings: Settings) -> Result:
    folder = settings.spool_dir
    waiting = [path for path in spools(folder) if _waits(path)]
    if not waiting:
        return Result("unsent runs", "ok", "none")
    return Result(
        "unsent runs",
        "warn",
        f"{len(waiting)}, the oldest {waiting[0].stem}",
        f"Send them: trainsanity sync {folder}{url_option(settings.url)}",
    )


def _waits(path: Path) -> bool:
    """Whether the run has packets that no server has and nobody is sending."""
    try:
        with contextlib.closing(Spool(path)) as spool:
            return spool.pending > 0
    except (SpoolError, OSError):
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
