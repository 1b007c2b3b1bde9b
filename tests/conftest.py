"""What tests of several parts share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

# The same examples every time where a machine decides; new ones on every other run. Without a
# deadline: how long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("new-examples", deadline=None)
settings.register_profile("same-examples", deadline=None, derandomize=True)
settings.load_profile("same-examples" if os.environ.get("CI") == "true" else "new-examples")

# Before any Keras is imported: warnings of C++ code would drown what the tests print.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# torch's threads spin while they wait, which takes the processor from the test beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Shells start jobs in the background with Ctrl-C ignored, which what tests start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """What JAX has compiled for one test is there for the next, and for the processes it starts."""
    if os.environ.get("KERAS_BACKEND") != "jax":
        return
    # One for each process: JAX may read what another one has half written.
    folder = tempfile.mkdtemp(prefix="trainsanity-jax-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def lacking(what: str, package: str) -> NoReturn:
    """Ends a test for which a program of the system is missing: a failure under CI, else a skip."""
    message = f"{what} is not installed (apt-get install {package})"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The system's browser; none is ever downloaded."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    lacking("Chromium", "chromium")


@pytest.fixture(scope="session")
def postgresql_bin() -> Path:
    """Folder with `initdb` and `postgres`, which Debian keeps out of the PATH."""
    if found := shutil.which("postgres"):
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    lacking("PostgreSQL", "postgresql")
