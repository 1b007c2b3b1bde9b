"""A deleted run is gone at once, and its rows bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cast import Training, lying
from sqlalchemy import func, select
from stage import Stage

from trainsanity.wire import Audit
from trainsanity_server.errors import NotFoundError
from trainsanity_server.live import Event
from trainsanity_server.services import deletion
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import Base, RunRow


def rows(stage: Stage, run_id: str) -> dict[str, int]:
    """Rows of a run in every table."""
    with stage.database.read() as session:
        counts = {}
        for table in Base.metadata.sorted_tables:
            if "run_id" in table.columns:
                query = select(func.count()).select_from(table).where(table.c.run_id == run_id)
                counts[table.name] = session.scalar(query)
        return {name: count for name, count in counts.items() if count}


def sweep(stage: Stage) -> int:
    steps = 1
    while stage.deletion.step() == 0.0:
        steps += 1
    return steps


def full(stage: Stage) -> Training:
    run, packets = lying(ended=False)
    run.declares(loss__reported="1")
    stage.play(packets)
    stage.play([run.packet(audits=[Audit("model", 1, {})], state="finished")])
    stage.alerts.resolve(stage.runs.alerts(run.id)[0].id)
    stage.send(run.packet(loss__reported=[1.0]))
    return run


def test_nothing_of_it_is_left(stage):
    run = full(stage)
    before = rows(stage, run.id)
    assert {
        "packets",
        "digests",
        "chunks",
        "groups",
        "alerts",
        "audits",
        "verdicts",
    } <= before.keys()
    stage.deletion.delete(run.id)
    sweep(stage)
    assert rows(stage, run.id) == {}


def test_at_once_nobody_sees_it(stage):
    run = full(stage)
    stage.deletion.delete(run.id)
    with pytest.raises(NotFoundError):
        stage.runs.get(run.id)
    assert stage.runs.page().runs == []
    assert stage.hub.published[-2:] == [Event("run", run.id), Event("alerts", run.id)]
    with pytest.raises(NotFoundError):
        stage.deletion.delete(run.id)


def test_other_runs_are_left_alone(stage):
    run, other = full(stage), full(stage)
    before = rows(stage, other.id)
    stage.deletion.delete(run.id)
    sweep(stage)
    assert rows(stage, other.id) == before


def test_a_large_run_goes_in_small_steps_while_others_go_on(stage, monkeypatch):
    monkeypatch.setattr(deletion, "BATCH_ROWS", 5)
    run, going = Training(), Training()
    stage.send(going.packet(loss__reported=[1.0]))
    for _ in range(23):
        stage.send(run.packet(loss__reported=np.ones(10)))
    stage.deletion.delete(run.id)
    left = []
    while stage.deletion.step() == 0.0:
        left.append(rows(stage, run.id).get("packets", 0))
        stage.send(going.packet(loss__reported=[1.0]))
    assert left[:5] == [18, 13, 8, 3, 0]
    assert stage.runs.get(going.id).steps == 1 + len(left)


def test_what_was_begun_is_ended_after_a_restart(stage, monkeypatch):
    monkeypatch.setattr(deletion, "BATCH_ROWS", 1)
    run = full(stage)
    stage.deletion.delete(run.id)
    stage.deletion.step()
    stage.deletion = deletion.Deletion(stage.database, stage.points, stage.hub, stage.clock)
    sweep(stage)
    assert rows(stage, run.id) == {}


def test_the_judge_leaves_it_alone(stage):
    run, packets = lying()
    stage.send_all(packets)
    stage.deletion.delete(run.id)
    stage.judge_all()
    assert "alerts" not in rows(stage, run.id)


def test_the_disk_gets_its_space_back(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    database = Database(sqlite_url)
    with Stage(database, rules=Rulebook([])) as stage:
        run = Training()
        for _ in range(40):
            stage.send(run.packet(loss__reported=np.random.default_rng(1).normal(size=5000)))
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.stat().st_size
        stage.deletion.delete(run.id)
        sweep(stage)
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size < before / 2
    database.close()


def test_its_row_stays_to_tell_late_clients(stage):
    run = full(stage)
    stage.deletion.delete(run.id)
    sweep(stage)
    with stage.database.read() as session:
        row = session.get(RunRow, run.id)
        assert row.deleted_at == stage.clock()
        assert (row.config, row.tags, row.sparkline) == ({}, [], None)
