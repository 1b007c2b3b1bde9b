"""Insertions that meet a row of the same key, alike on both engines."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session


def insert_or_ignore(session: Session, model: type[DeclarativeBase]) -> Any:
    """An insertion that leaves a row of the same key as it is."""
    return _insert(session, model).on_conflict_do_nothing()


def insert_or_update(session: Session, model: type[DeclarativeBase], *columns: str) -> Any:
    """An insertion that takes over `columns` into a row of the same key."""
    statement = _insert(session, model)
    return statement.on_conflict_do_update(
        index_elements=list(model.__table__.primary_key),
        set_={name: statement.excluded[name] for name in columns},
    )


def _insert(session: Session, model: type[DeclarativeBase]) -> Any:
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(model.__table__)
