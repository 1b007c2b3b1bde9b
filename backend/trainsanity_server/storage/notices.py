"""Short messages between processes on one PostgreSQL; nothing depends on their arrival."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import psycopg
from psycopg import sql

from trainsanity_server.storage.database import Database

CHANNEL = "trainsanity"


class NoticesLostError(Exception):
    """The connection is gone."""


class Notices:
    """One connection that listens and speaks.

    Raises:
        NoticesLostError: from the constructor and every method.
    """

    def __init__(self, database: Database) -> None:
        url = database.url.set(drivername="postgresql")
        with _lost():
            self._connection = psycopg.connect(
                url.render_as_string(hide_password=False), autocommit=True
            )
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))

    def send(self, texts: Iterable[str]) -> None:
        with _lost():
            for text in texts:
                self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, text))

    def wait(self, seconds: float) -> Iterator[str]:
        """What others said, until nothing comes for `seconds`; own words too."""
        with _lost():
            for notice in self._connection.notifies(timeout=seconds):
                yield notice.payload

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        raise NoticesLostError(str(error)) from error
