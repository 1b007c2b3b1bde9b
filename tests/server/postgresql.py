"""A PostgreSQL of the tests' own: on a socket in a temporary folder, gone when they end."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

# It holds nothing that must survive a power cut.
OPTIONS = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


@dataclass(frozen=True)
class PostgreSQL:
    """A running server; `socket` is the folder of its socket."""

    socket: Path
    user: str

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{self.user}@/{database}?host={self.socket}"

    def execute(self, statement: str) -> None:
        """Outside a transaction, in the database that is always there."""
        address = f"host={self.socket} user={self.user} dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement)


@contextlib.contextmanager
def running(bin_folder: Path) -> Iterator[PostgreSQL]:
    with tempfile.TemporaryDirectory(prefix="ts-pg-") as name:
        folder = Path(name)
        # PostgreSQL refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else getpass.getuser()
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        prefix = become if os.geteuid() == 0 else []
        if prefix:
            shutil.chown(folder, user)
        data = str(folder / "data")
        initdb = [*prefix, bin_folder / "initdb", "-D", data, "-U", user, "-A", "trust", "-N"]
        subprocess.run([*initdb, "-E", "UTF8", "--locale=C"], check=True, stdout=subprocess.DEVNULL)
        options = ["-D", data, "-k", folder, "-c", "listen_addresses=", *OPTIONS]
        ctl = [*prefix, bin_folder / "pg_ctl", "-D", data, "-w"]
        start = [
            *ctl,
            "-l",
            str(folder / "log"),
            "-o",
            " ".join(str(o) for o in options[2:]),
            "start",
        ]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        try:
            yield PostgreSQL(folder, user)
        finally:
            stop = [*ctl, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL)
