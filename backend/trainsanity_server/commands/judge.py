"""`trainsanity judge --again`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import make_url

from trainsanity_server.commands.terminal import (
    Refusal,
    database_option,
    log_to_terminal,
    opened,
    plain_refusals,
    read_settings,
)
from trainsanity_server.live import LiveHub
from trainsanity_server.services.alerts import Alerts
from trainsanity_server.services.rejudge import Difference, HeldError, Rejudge
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.services.runs import MAX_LIMIT, Run, Runs
from trainsanity_server.settings import Settings
from trainsanity_server.storage import schema
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.sql_points import SqlPointStore

HELD_SECONDS = 60  # longer than the lease of a server that has judged the run


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--again", is_flag=True, help="Required: every run is judged once as it comes in.")
@click.option("--all", "every", is_flag=True, help="All runs that have ended.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
@database_option
def judge(runs: tuple[str, ...], again: bool, every: bool, as_json: bool, db: str | None) -> None:
    """Judge runs of the past again and show what is different.

    For example after a rule has improved. RUN is a run's id, the beginning of its id, or its name.
    Works on the database itself, also while a server runs on it; tells no channel.
    """
    if not again or bool(runs) == every:
        raise click.UsageError("say `trainsanity judge --again RUN` or `... --again --all`.")
    log_to_terminal()
    settings = read_settings(db)
    _must_exist(settings)
    with plain_refusals(), opened(settings) as database:
        _must_be_current(database)
        questions = Runs(database)
        chosen = _ended(questions) if every else [_run(questions, wanted) for wanted in runs]
        judging = _rejudge(database, settings)
        differences = [(run, _patiently(judging, run.id)) for run in chosen]
    if as_json:
        click.echo(json.dumps([asdict(difference) for _, difference in differences], indent=2))
        return
    for run, difference in differences:
        _show(run, difference)


def _must_exist(settings: Settings) -> None:
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise Refusal(
            f"there is no database at {url}. Name the one that the server uses: "
            "--db or TRAINSANITY_DATABASE_URL."
        )


def _must_be_current(database: Database) -> None:
    if not schema.is_current(database):
        raise Refusal("the database is not of this version. Run: trainsanity db upgrade")


def _rejudge(database: Database, settings: Settings) -> Rejudge:
    alerts = Alerts(database, LiveHub(), time.time)
    book = Rulebook(heuristics=settings.heuristics)
    return Rejudge(database, SqlPointStore(database), alerts, time.time, book)


def _run(questions: Runs, wanted: str) -> Run:
    found = [
        run
        for run in _pages(questions, q=wanted)
        if run.id.startswith(wanted.lower()) or run.name == wanted
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Refusal(f"the database has no run of this id or name. Received: {wanted!r}")
    ids = ", ".join(run.id for run in found[:5])
    raise Refusal(
        f"{len(found)} runs are called so: give an id. Received: {wanted!r}, which is {ids}"
    )


def _ended(questions: Runs) -> list[Run]:
    return [run for run in _pages(questions) if run.settled]


def _pages(questions: Runs, q: str | None = None) -> Iterator[Run]:
    cursor: str | None = None
    while True:
        page = questions.page(q=q, limit=MAX_LIMIT, cursor=cursor)
        yield from page.runs
        cursor = page.next_cursor
        if cursor is None:
            return


def _patiently(judging: Rejudge, run_id: str) -> Difference:
    """A server that has just judged the run holds it for some seconds."""
    for _ in range(HELD_SECONDS):
        try:
            return judging.again(run_id)
        except HeldError:
            time.sleep(1.0)
    return judging.again(run_id)


def _show(run: Run, difference: Difference) -> None:
    console = Console(highlight=False)
    name = escape(f"{run.name} ({run.id})" if run.name else run.id)
    if not difference:
        console.print(f"{name}: nothing is different")
        return
    table = Table("", "before", "after", title=name, title_justify="left", box=None)
    for change in (*difference.verdicts, *difference.alerts):
        table.add_row(*(escape(text or "-") for text in astuple(change)))
    console.print(table)
