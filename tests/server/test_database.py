"""How the database is opened, brought up to date, and written by many at once."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import psutil
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from cast import Training, lying
from fastapi.testclient import TestClient
from sqlalchemy import event, inspect, select, text, update
from sqlalchemy.exc import OperationalError
from stage import Stage

from trainsanity_server.app import create_app
from trainsanity_server.errors import StartupError
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.settings import Settings
from trainsanity_server.storage import file_system
from trainsanity_server.storage.database import WRITE_ATTEMPTS, Database
from trainsanity_server.storage.file_system import Mount, network_file_system
from trainsanity_server.storage.models import Base, RunRow
from trainsanity_server.storage.schema import is_current, migrations_folder, prepare, upgrade


def start(url: str) -> None:
    app = create_app(Settings(database_url=url))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/readyz").status_code == 200


# Versions


def test_the_migrations_make_what_the_models_say(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []


def test_a_filled_database_goes_back_to_nothing_and_up_again(database, clock):
    run, packets = lying(4)
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    for _ in range(2):
        with Stage(database, clock) as stage:
            stage.play(packets)
            assert stage.runs.get(run.id).settled
        with database.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
            connection.commit()
            assert set(inspect(connection).get_table_names()) == {"alembic_version"}
        upgrade(database)


def test_the_embedded_database_brings_itself_up_to_date(tmp_path):
    path = tmp_path / "new" / "folder" / "trainsanity.db"
    start(f"sqlite:///{path}")
    assert path.exists()


def test_postgresql_that_is_behind_is_refused_with_the_command_that_helps(empty_postgresql_url):
    with pytest.raises(StartupError, match="Run: trainsanity db upgrade"):
        start(empty_postgresql_url)
    database = Database(empty_postgresql_url)
    assert not is_current(database)
    upgrade(database)
    assert is_current(database)
    upgrade(database)
    database.close()
    start(empty_postgresql_url)


def test_a_database_of_a_newer_version_is_refused(database):
    database.write(lambda s: s.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(StartupError, match="tables of version 9999"):
        prepare(database)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_tables_of_another_program_are_left_alone(engine, request, tmp_path):
    url = f"sqlite:///{tmp_path / 'other.db'}"
    if engine == "postgresql":
        url = request.getfixturevalue("empty_postgresql_url")
    database = Database(url)
    database.write(lambda s: s.execute(text("CREATE TABLE runs (id text)")))
    with pytest.raises(StartupError, match=r"another program.*Received: runs\. Name another"):
        upgrade(database)
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["runs"]
    database.close()


def test_a_password_is_not_shown():
    settings = Settings(database_url="postgresql://me:secret@127.0.0.1:1/none")
    database = Database(settings.database_url)
    assert "secret" not in str(database.url)
    database.close()


# Opening


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(StartupError, match="needs a database file"):
        Database(url)


def test_a_folder_that_cannot_be_made_is_said_to_be_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="the folder of the database cannot be made"):
        Database(f"sqlite:///{tmp_path / 'file' / 'x.db'}")


def test_a_file_that_cannot_be_made_is_said_to_be_so(tmp_path):
    with pytest.raises(StartupError, match=r"cannot be (made|used)"):
        Database(f"sqlite:///{tmp_path}")


def test_a_new_file_can_give_back_space(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    with database.read() as session:
        assert session.scalar(text("PRAGMA auto_vacuum")) == 2
        assert session.scalar(text("PRAGMA page_size")) == 8192
    database.close()


MOUNTS = [
    Mount("/", "ext4"),
    Mount("/home", "nfs4"),
    Mount("/home/me/scratch", "xfs"),
    Mount("/mnt/share", "cifs"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/ts.db", None),
        ("/home/me/ts.db", "nfs4"),
        ("/home/me/scratch/ts.db", None),
        ("/home2/ts.db", None),
        ("/mnt/share/ts.db", "cifs"),
    ],
)
def test_a_network_file_system_is_noticed(path, kind):
    assert network_file_system(Path(path), MOUNTS) == kind


def test_a_file_on_a_network_file_system_is_warned_of(sqlite_url, monkeypatch, caplog):
    monkeypatch.setattr(
        file_system, "NETWORK", {p.fstype for p in psutil.disk_partitions(all=True)}
    )
    Database(sqlite_url).close()
    assert "network file system" in caplog.text


@pytest.mark.parametrize(("setting", "number"), [("full", 2), ("normal", 1)])
def test_sqlite_is_as_durable_as_asked_for(sqlite_url, setting, number):
    database = Database(sqlite_url, sqlite_synchronous=setting)
    with database.read() as session:
        assert session.scalar(text("PRAGMA synchronous")) == number
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
    database.close()


# Writing


def test_what_fails_leaves_nothing_behind(database):
    run = Training()

    def half(session):
        session.add(RunRow(id=run.id))
        session.flush()
        raise KeyError(run.id)

    with pytest.raises(KeyError):
        database.write(half)
    with database.read() as session:
        assert session.get(RunRow, run.id) is None


def test_many_threads_may_write_at_once(database):
    """Complaint of every tool on SQLite: database is locked."""
    run = Training()
    database.write(lambda s: s.add(RunRow(id=run.id)))
    more = update(RunRow).where(RunRow.id == run.id).values(points=RunRow.points + 1)
    failures = []

    def work() -> None:
        try:
            for _ in range(20):
                database.write(lambda s: s.execute(more))
                with database.read() as session:
                    session.scalar(select(RunRow.points))
        except OperationalError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.read() as session:
        assert session.scalar(select(RunRow.points)) == 160


def test_another_process_on_the_same_file_is_waited_for(sqlite_url):
    database = Database(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    let_go = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    let_go.start()
    database.write(lambda s: s.add(RunRow(id=Training().id)))
    let_go.join()
    other.close()
    database.close()


def test_a_transaction_that_may_succeed_later_is_tried_again(database):
    attempts = []

    def work(session):
        attempts.append(1)
        if len(attempts) < 3:
            raise OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))
        return "done"

    assert database.write(work) == "done"
    assert len(attempts) == 3


def test_but_not_for_ever(database):
    attempts = []

    def work(session):
        attempts.append(1)
        raise OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))

    with pytest.raises(OperationalError):
        database.write(work)
    assert len(attempts) == WRITE_ATTEMPTS


def test_another_fault_is_not_tried_again(database):
    attempts = []

    def work(session):
        attempts.append(1)
        session.execute(text("SELECT * FROM no_such_table"))

    with pytest.raises(Exception, match="no_such_table"):
        database.write(work)
    assert len(attempts) == 1


def test_a_snapshot_sees_one_moment(database):
    run = Training()
    database.write(lambda s: s.add(RunRow(id=run.id, points=1)))
    more = update(RunRow).values(points=2)
    with database.snapshot() as session:
        assert session.scalar(select(RunRow.points)) == 1
        database.write(lambda s: s.execute(more))
        assert session.scalar(select(RunRow.points)) == 1
    with database.read() as session:
        assert session.scalar(select(RunRow.points)) == 2


def test_two_servers_on_one_database_take_turns(database_url):
    """Each packet of a run may come to another of them."""
    run = Training()
    packets = [run.packet(loss__reported=[1.0]) for _ in range(20)]
    databases = [Database(database_url) for _ in range(2)]
    none = Rulebook([])
    with Stage(databases[0], rules=none) as one, Stage(databases[1], rules=none) as two:
        for i, packet in enumerate(packets):
            assert (one, two)[i % 2].send(packet).next_seq == i + 1
        assert one.send(packets[3]).next_seq == 20
        assert two.runs.get(run.id).points == 20
    for database in databases:
        database.close()


def test_two_servers_may_be_told_of_a_run_at_the_same_moment(database_url):
    run = Training()
    packet = run.packet(loss__reported=[1.0])
    databases = [Database(database_url) for _ in range(2)]
    gate = threading.Barrier(2)
    answers = []

    def send(database: Database) -> None:
        with Stage(database, rules=Rulebook([])) as stage:
            gate.wait()
            answers.append(stage.send(packet).next_seq)

    threads = [threading.Thread(target=send, args=[database]) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [1, 1]
    for database in databases:
        database.close()


def test_reading_does_not_wait_for_writing(database):
    """A long write must not hold up a page."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(session):
        session.add(RunRow(id=Training().id))
        session.flush()
        inside.set()
        assert go_on.wait(20)

    writer = threading.Thread(target=lambda: database.write(slow))
    writer.start()
    assert inside.wait(20)
    with database.read() as session:
        assert session.scalars(select(RunRow.id)).all() == []
    go_on.set()
    writer.join()


def test_every_key_of_a_big_table_begins_with_the_run():
    """So they can be distributed by run."""
    for name in ("packets", "digests", "groups", "chunks", "signals", "audits", "verdicts"):
        key = Base.metadata.tables[name].primary_key
        assert next(iter(key.columns)).name == "run_id"
    assert not any(table.foreign_keys for table in Base.metadata.tables.values())


def test_lists_need_no_scan(database):
    indexes = inspect(database.engine).get_indexes("runs")
    assert ["started_at", "id"] in [index["column_names"] for index in indexes]


def test_the_lock_is_held_only_for_one_database(tmp_path, migrated_file):
    """Two servers in one process, as in tests, do not wait for each other."""
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    for path in paths:
        Path(path).write_bytes(migrated_file.read_bytes())
    one, two = (Database(f"sqlite:///{path}") for path in paths)
    commits = []
    event.listen(two.engine, "commit", lambda connection: commits.append(1))

    def work(session):
        two.write(lambda s: s.add(RunRow(id=Training().id)))
        return "done"

    assert one.write(work) == "done"
    assert commits == [1]
    one.close()
    two.close()
