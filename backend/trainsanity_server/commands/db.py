"""`trainsanity db`: looks after the database."""

from __future__ import annotations

import click

from trainsanity_server.commands.terminal import (
    database_option,
    log_to_terminal,
    opened,
    plain_refusals,
    read_settings,
)
from trainsanity_server.storage import schema


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
@database_option
def upgrade(db: str | None) -> None:
    """Bring the database to the tables of this version."""
    log_to_terminal()
    with plain_refusals(), opened(read_settings(db)) as database:
        where = database.url.render_as_string(hide_password=True)
        if schema.is_current(database):
            click.echo(f"{where} is up to date.")
            return
        schema.upgrade(database)
        click.echo(f"{where} has been brought up to date.")
