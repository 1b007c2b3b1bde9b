"""Which version of the tables a database has, and how it gets the newest."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from trainsanity_server.errors import StartupError
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import Base


def migrations_folder() -> Path:
    """Inside the installed package, or at the root of the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parents[1] / "migrations"


def upgrade(database: Database) -> None:
    """Brings the tables to the newest version; does nothing where they are it already.

    Raises:
        StartupError: tables of another program stand where ours would.
    """
    with database.engine.connect() as connection:
        _refuse_strangers(database, connection)
        command.upgrade(_config(connection), "head")
        connection.commit()


def is_current(database: Database) -> bool:
    """Whether the tables are of this version.

    Raises:
        StartupError: they are of a newer one.
    """
    with database.engine.connect() as connection:
        heads = set(MigrationContext.configure(connection).get_current_heads())
    known = {script.revision for script in _scripts().walk_revisions()}
    if not heads <= known:
        raise StartupError(
            f"the database at {_shown(database)} was written by a newer trainsanity. "
            f"Received: tables of version {', '.join(sorted(heads - known))}. "
            "Update trainsanity, or name another database with --db"
        )
    return heads == set(_scripts().get_heads())


def prepare(database: Database) -> None:
    """Called when the server starts.

    Raises:
        StartupError: the database is behind and not the embedded one, or of a newer version.
    """
    if is_current(database):
        return
    if not database.is_sqlite:
        raise StartupError(
            f"the database at {_shown(database)} is behind this version of trainsanity. "
            "Run: trainsanity db upgrade, with the same --db or TRAINSANITY_DATABASE_URL"
        )
    upgrade(database)


def _refuse_strangers(database: Database, connection: Connection) -> None:
    if MigrationContext.configure(connection).get_current_heads():
        return
    strangers = sorted(Base.metadata.tables.keys() & set(inspect(connection).get_table_names()))
    if strangers:
        raise StartupError(
            f"the database at {_shown(database)} belongs to another program: it has tables that "
            f"trainsanity did not make. Received: {', '.join(strangers)}. "
            "Name another database with --db or TRAINSANITY_DATABASE_URL"
        )


def _shown(database: Database) -> str:
    return database.url.render_as_string(hide_password=True)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(None))


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
