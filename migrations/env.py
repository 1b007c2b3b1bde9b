"""Run by Alembic: from the server with a connection, or from its own command line without."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from trainsanity_server.settings import Settings
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import Base, Document, Words


def plain_types(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Migrations name the types of the database, so they stay true when ours change."""
    return "sa.Text()" if kind == "type" and isinstance(item, (Document, Words)) else False


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        render_item=plain_types,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with Database(Settings().database_url).engine.connect() as opened:
        migrate(opened)
        opened.commit()
