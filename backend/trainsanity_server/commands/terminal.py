"""What the server's commands share: settings and database, and refusals in one sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from trainsanity_server.errors import ServerError, StartupError
from trainsanity_server.settings import PREFIX, Settings, unknown_variables
from trainsanity_server.storage.database import Database

SECRETS = ("api_keys", "slack_webhook_url")  # never shown

database_option = click.option(
    "--db",
    metavar="URL",
    help="Database, e.g. sqlite:///runs.db or postgresql://user@host/name; "
    "default: $TRAINSANITY_DATABASE_URL, then a file in the user's data folder.",
)


class Refusal(click.ClickException):
    """The command cannot do what it was asked for; the text says what to change."""

    exit_code = 2


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database; whatever it or the server refuses becomes one sentence."""
    database = Database(settings.database_url, sqlite_synchronous=settings.sqlite_synchronous)
    try:
        yield database
    except DBAPIError as error:
        where = database.url.render_as_string(hide_password=True)
        raise Refusal(f"the database at {where} cannot be used: {error.orig}") from error
    finally:
        database.close()


@contextmanager
def plain_refusals() -> Iterator[None]:
    """Errors that say what to change are told without a traceback."""
    try:
        yield
    except (StartupError, ServerError) as error:
        raise Refusal(str(error)) from error


def read_settings(db: str | None) -> Settings:
    """The operator's settings, with `--db` before the environment."""
    try:
        return Settings(database_url=db) if db else Settings()
    except ValidationError as error:
        raise Refusal("\n".join(_explained(e, db) for e in error.errors())) from error


def _explained(error: Any, db: str | None) -> str:
    field = "".join(str(part) for part in error["loc"][:1])
    said = error["msg"].removeprefix("Value error, ")
    if "Received" not in said and field not in SECRETS:
        said += f". Received: {error['input']!r}"
    source = "--db" if db and field == "database_url" else f"{PREFIX}{field.upper()}"
    return f"{source}: {said}"


def warn_of_unknown_variables() -> None:
    """A slip in a variable's name would otherwise pass in silence."""
    for name, meant in unknown_variables(os.environ).items():
        hint = f" Is {meant} meant?" if meant else ""
        click.echo(f"Warning: {name} is no setting of this server and is not read.{hint}", err=True)


def log_to_terminal(*, verbose: bool = False) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
