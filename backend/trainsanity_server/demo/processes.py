"""Programs that the demo starts, and ends again whatever happens."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

STOP_SECONDS = 15.0  # for a clean end, before it is killed

Printer = Callable[[str], None]


class ProgramFailed(Exception):  # noqa: N818 - what happened to a program, told as such
    """A program ended with another status than 0, or before its time."""


class Program:
    """A running program whose output is read line by line, in a thread.

    Args:
        name: what to call it in messages.
        printer: gets each line of its output; None keeps the last lines for a message instead.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        printer: Printer | None = None,
    ) -> None:
        self.name = name
        self._printer = printer
        self._last_lines: list[str] = []
        # Its own session: Ctrl-C reaches the demo alone, which then ends each program in order.
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last_lines = [*self._last_lines[-19:], line.rstrip()]
            if self._printer is not None:
                self._printer(line.rstrip())

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended within the time; its output is then read to the end."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join(STOP_SECONDS)
        return True

    def check(self) -> None:
        """Raises ProgramFailed where it has ended, although it should run on, or with a failure."""
        if self._process.poll() is None:
            return
        self.wait()
        raise ProgramFailed(self._obituary())

    def check_success(self) -> None:
        """Raises ProgramFailed where it has ended with another status than 0."""
        if self._process.poll() not in (None, 0):
            self.check()

    def _obituary(self) -> str:
        said = "" if self._printer else "".join(f"\n  {line}" for line in self._last_lines)
        return f"{self.name} ended with status {self._process.returncode}.{said}"

    def stop(self) -> None:
        """Asks it to end, then makes it."""
        if self._process.poll() is None:
            self._process.terminate()
            if not self.wait(STOP_SECONDS):
                self._process.kill()
        self.wait()


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    printer: Printer | None = None,
) -> Iterator[Program]:
    """The program, which has ended when the block ends."""
    program = Program(name, command, environment, printer)
    try:
        yield program
    finally:
        program.stop()
