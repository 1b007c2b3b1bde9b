"""The real command line, as a user's shell would start it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "trainsanity")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table, without its heading."""
        return [re.split(r"\s{2,}", line.strip()) for line in self.out.splitlines()[1:]]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what the person who runs the tests has set for himself."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINSANITY_", "KERAS_"))}
    return {**kept, **extra}


def trainsanity(*arguments: str | Path, **environment: str) -> Outcome:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass
class Served:
    """A server that `trainsanity serve` has started."""

    url: str
    database: str
    process: subprocess.Popen[str]

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """Ends it and gives its exit status."""
        self.process.send_signal(with_signal)
        return self.process.wait(30)


@contextmanager
def served(
    database: Path, *arguments: str, own_session: bool = False, **environment: str
) -> Iterator[Served]:
    """A server on a free port."""
    url = f"sqlite:///{database}"
    command = [*COMMAND, "serve", "--port", "0", "--db", url, *arguments]
    process = subprocess.Popen(
        command,
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=own_session,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        said = re.match(r"trainsanity is at (\S+)", line)
        assert said, f"expected the address. Received: {line!r}"
        yield Served(said[1], url, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
