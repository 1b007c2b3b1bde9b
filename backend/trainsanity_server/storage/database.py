"""The database: how it is opened, read and written."""

from __future__ import annotations

import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from trainsanity_server.errors import StartupError
from trainsanity_server.storage.file_system import network_file_system

T = TypeVar("T")
log = logging.getLogger(__name__)

BUSY_SECONDS = 10.0  # how long a statement waits for another process on the same SQLite file
PAGE_BYTES = 8192
WRITE_ATTEMPTS = 6
FREED_PAGES = 20_000  # given back to the disk at once, 160 MB
# Serialization failure, deadlock and lock timeout of PostgreSQL: the transaction may be run again.
RETRIED_SQLSTATES = {"40001", "40P01", "55P03"}


class Database:
    """One engine, short read sessions, and one way to write.

    Args:
        url: SQLAlchemy address.
        sqlite_synchronous: see `Settings.sqlite_synchronous`.
    """

    def __init__(self, url: str, *, sqlite_synchronous: Literal["full", "normal"] = "full") -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._write_lock = threading.RLock() if self.is_sqlite else contextlib.nullcontext()
        self.engine = self._open_sqlite(sqlite_synchronous) if self.is_sqlite else self._open()

    def _open(self) -> Engine:
        return create_engine(
            self.url, pool_size=5, max_overflow=10, pool_pre_ping=True, pool_recycle=1800
        )

    def _open_sqlite(self, synchronous: str) -> Engine:
        if self.url.database in (None, "", ":memory:"):
            raise StartupError(
                "the server needs a database file: several threads share it. "
                f"Received: {self.url}. Use sqlite:///trainsanity.db"
            )
        path = Path(self.url.database)
        _make_file(path)
        if kind := network_file_system(path):
            log.warning(
                "%s lies on a network file system (%s), where SQLite may lose data. Put it on a "
                "local disk, or use PostgreSQL.",
                path,
                kind,
            )
        engine = create_engine(self.url, pool_size=8, max_overflow=8)

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            # The driver's own transactions begin too late to lock; ours begin by `BEGIN` below.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute(f"PRAGMA synchronous = {synchronous}")
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session for one short look; nothing is kept of what is changed in it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A read session in which every query sees the same moment."""
        with Session(self.engine, expire_on_commit=False) as session:
            if not self.is_sqlite:  # there every transaction is so
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    def write(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in one transaction, and again where the database asks for it.

        `work` must not do anything that cannot be done twice, outside the session.
        """
        for attempt in range(WRITE_ATTEMPTS):
            try:
                return self._write_once(work)
            except DBAPIError as error:
                if attempt == WRITE_ATTEMPTS - 1 or not _is_passing(error):
                    raise
                time.sleep(random.uniform(0.01, 0.05) * 2**attempt)
        raise AssertionError("unreachable")

    def _write_once(self, work: Callable[[Session], T]) -> T:
        # Threads of this process queue here, in memory, rather than at SQLite's file lock.
        with self._write_lock, self.engine.connect() as connection:
            options = connection.execution_options(writes=True)
            with Session(options, expire_on_commit=False) as session, session.begin():
                return work(session)

    @property
    def connections_in_use(self) -> int:
        """Connections that somebody holds at this moment."""
        return cast(QueuePool, self.engine.pool).checkedout()

    def give_back_space(self) -> None:
        """Returns free pages of an SQLite file to the disk; PostgreSQL looks after itself."""
        if self.is_sqlite:
            with self._write_lock, contextlib.closing(self.engine.raw_connection()) as connection:
                # As a script: run as a statement, the driver stops after the first page.
                script = f"PRAGMA incremental_vacuum({FREED_PAGES})"
                connection.cursor().executescript(script)

    def close(self) -> None:
        self.engine.dispose()


def _make_file(path: Path) -> None:
    """What can be chosen only while the file is empty."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"the folder of the database cannot be made: {path.parent} ({error.strerror}). "
            "Choose another place with --db or TRAINSANITY_DATABASE_URL."
        ) from error
    if path.is_file() and path.stat().st_size:
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error as error:
        raise StartupError(
            f"the database {path} cannot be made ({error}). Choose another place with --db or "
            "TRAINSANITY_DATABASE_URL."
        ) from error


def _is_passing(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when tried again."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate in RETRIED_SQLSTATES or "database is locked" in str(error.orig)
