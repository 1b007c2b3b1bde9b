"""The server's tests run on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import postgresql
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from rules_for_tests import rulebook
from stage import Clock, MakeApp, Stage

from trainsanity_server.app import create_app
from trainsanity_server.settings import Settings
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.schema import upgrade

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres(postgresql_bin: Path) -> Iterator[postgresql.PostgreSQL]:
    with postgresql.running(postgresql_bin) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables; tests copy it."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_template(postgres: postgresql.PostgreSQL) -> str:
    """A PostgreSQL database with all tables; tests copy it."""
    postgres.execute("CREATE DATABASE template_ts")
    _migrate(postgres.url("template_ts"))
    return "template_ts"


def _migrate(url: str) -> None:
    database = Database(url)
    upgrade(database)
    database.close()


@pytest.fixture
def sqlite_url(migrated_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "trainsanity.db"
    shutil.copy(migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
def empty_postgresql_url(postgres: postgresql.PostgreSQL) -> str:
    """A database without any table."""
    name = f"empty_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name}")
    return postgres.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a database with all tables and nothing in them, once for each engine."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    server: postgresql.PostgreSQL = request.getfixturevalue("postgres")
    template: str = request.getfixturevalue("migrated_template")
    name = f"test_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.url(name)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stage(database: Database, clock: Clock) -> Iterator[Stage]:
    with Stage(database, clock) as stage:
        yield stage


@pytest.fixture
def make_app(database_url: str) -> MakeApp:
    """An application on this database, with the rules for tests."""

    def make(**settings: object) -> FastAPI:
        return create_app(
            Settings(database_url=database_url, judge_interval_seconds=0.01, **settings),
            rulebook=rulebook(),
        )

    return make


@pytest.fixture
def client(make_app: MakeApp) -> Iterator[TestClient]:
    with TestClient(make_app(), base_url="http://127.0.0.1") as client:
        yield client
