"""The command line: what can be asked of a server, of the rules and of this machine.

Commands that need the server's packages are plugged in by the entry points of the group
`trainsanity.commands`, so that the client stands alone.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from zipfile import BadZipFile, is_zipfile

import click

import trainsanity
from trainsanity import alert_text, rule_text
from trainsanity import doctor as checkup
from trainsanity.columns import printable, table
from trainsanity.errors import TrainsanityError
from trainsanity.export import document, lines
from trainsanity.remote import Remote, RemoteError, run_path
from trainsanity.rules import Rule, Severity, all_rules
from trainsanity.settings import Settings
from trainsanity.sync import SyncResult, sync_directory

PLUGINS = "trainsanity.commands"
POLL_SECONDS = 0.5  # between two looks at a run that is not settled yet
# Alerts that somebody has called no trouble do not fail a build.
EXCUSED = ("muted", "resolved")

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

Command = TypeVar("Command", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Exit status 2: not 1, which says that there is an alert."""

    exit_code = 2


class Commands(click.Group):
    """Our commands and those that are plugged in."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        plugin = _plugins().get(cmd_name)
        return _loaded(plugin) if plugin else super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrainsanityError as error:
            raise Failure(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read it has gone: click knows what to do
                raise
            raise Failure(f"reading or writing failed: {error}") from error


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGINS)}


def _loaded(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        return _missing(entry.name, str(error.name))
    assert isinstance(command, click.Command), entry.value
    return command


def _missing(name: str, module: str) -> click.Command:
    """Stands in for a command whose packages are not installed."""

    @click.command(
        name,
        help="Needs the server: pip install 'trainsanity[server]'",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def command() -> None:
        raise Failure(
            f"`trainsanity {name}` needs the server, and the module {module!r} is not installed. "
            "Install it with: pip install 'trainsanity[server]'"
        )

    return command


@dataclass(frozen=True)
class Target:
    """The server a command talks to."""

    settings: Settings

    def online(self) -> Settings:
        if self.settings.is_offline:
            raise Failure("this command asks a server, and the address is 'offline': give --url.")
        return self.settings

    def remote(self) -> Remote:
        settings = self.online()
        return Remote(settings.url, settings.api_key)


def asks_server(command: Command) -> Command:
    """Adds --url and --api-key."""
    command = click.option(
        "--api-key", help="Key of the server; default: $TRAINSANITY_API_KEY.", metavar="KEY"
    )(command)
    return click.option(
        "--url",
        help="Address of the server; default: $TRAINSANITY_URL, then http://127.0.0.1:8321.",
        metavar="URL",
    )(command)


as_json = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")


def _target(url: str | None, api_key: str | None) -> Target:
    return Target(Settings.resolve(url, api_key=api_key))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(trainsanity.__version__, prog_name="trainsanity")
def main() -> None:
    """Checks whether what Keras training shows is true."""


@main.command()
@asks_server
@as_json
@click.option("--project", help="Only runs of this project.")
@click.option(
    "--state",
    type=click.Choice(["running", "finished", "failed", "silent"]),
    help="Only runs in this state.",
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
def runs(
    url: str | None,
    api_key: str | None,
    as_json: bool,
    project: str | None,
    state: str | None,
    limit: int,
) -> None:
    """List the newest runs with their alerts."""
    found = list(_target(url, api_key).remote().runs(limit, project=project, state=state))
    if as_json:
        return _print_json(found)
    if not found:
        return click.echo("no runs")
    heading = ("id", "name", "project", "state", "steps", *Severity)
    _print(table(heading, ([*_run_cells(run)] for run in found)))


def _run_cells(run: Mapping[str, Any]) -> Iterable[object]:
    yield from (run["id"], run["name"] or "", run["project"], run["state"], run["steps"])
    yield from (run["alert_counts"].get(severity, 0) or "-" for severity in Severity)


@main.command()
@click.argument("run")
@asks_server
@as_json
@click.option(
    "--fail-on",
    type=click.Choice([severity.value for severity in Severity]),
    help="Exit with status 1 where there is an alert as bad as this or worse that is neither "
    "muted nor resolved. Waits until every rule has spoken.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds that --fail-on waits for that; then exit status 2.",
)
def alerts(
    run: str,
    url: str | None,
    api_key: str | None,
    as_json: bool,
    fail_on: str | None,
    wait: float,
) -> None:
    """Show the alerts of RUN.

    RUN is a run's id, the beginning of its id, or its name.
    """
    remote = _target(url, api_key).remote()
    found = remote.run(run)
    if fail_on is not None:
        _wait_until_settled(remote, found["id"], wait)
    listed = remote.get(run_path(found, "alerts"))["alerts"]
    listed.sort(key=lambda alert: Severity(alert["severity"]).rank)
    if as_json:
        _print_json(listed)
    elif not listed:
        click.echo("no alerts")
    for alert in () if as_json else listed:
        _print(alert_text.lines(alert))
    if fail_on is not None and any(_fails(alert, Severity(fail_on)) for alert in listed):
        sys.exit(1)


def _wait_until_settled(remote: Remote, run_id: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not (run := remote.run(run_id))["settled"]:
        if time.monotonic() >= end:
            raise Failure(
                f"run {run_id} is {run['state']}, and after {seconds:g} s not every rule has "
                "spoken, so nothing can be said yet. Wait longer with --wait."
            )
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


def _fails(alert: Mapping[str, Any], limit: Severity) -> bool:
    return alert["state"] not in EXCUSED and Severity(alert["severity"]).rank <= limit.rank


@main.command()
@click.argument("run")
@asks_server
@click.option(
    "--format",
    "kind",
    type=click.Choice(["json", "ndjson"]),
    default="json",
    show_default=True,
    help="One document, or one object a line with its type.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path, allow_dash=True),
    default=Path("-"),
    help="File to write; default: standard output.",
)
def export(run: str, url: str | None, api_key: str | None, kind: str, output: Path) -> None:
    """Write everything that the server knows of RUN.

    That is its samples, audits, alerts and verdicts. RUN is a run's id, the beginning of its id,
    or its name.
    """
    remote = _target(url, api_key).remote()
    found = remote.run(run)
    try:
        with click.open_file(str(output), "w", encoding="utf-8", atomic=str(output) != "-") as file:
            for text in document(remote, found) if kind == "json" else lines(remote, found):
                file.write(text)
    except OSError as error:
        if str(output) == "-":  # whoever read it has gone
            raise
        raise Failure(f"{output} cannot be written: {error.strerror}") from error


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@asks_server
@click.option("--yes", is_flag=True, help="Do not ask before each.")
def delete(runs: tuple[str, ...], url: str | None, api_key: str | None, yes: bool) -> None:
    """Delete all that the server knows of each RUN, for good.

    RUN is a run's id, the beginning of its id, or its name.
    """
    remote = _target(url, api_key).remote()
    for found in [remote.run(wanted) for wanted in runs]:
        named = printable(f"{found['name'] or 'run'} ({found['id']})")
        if yes or click.confirm(f"Delete {named} with its {found['steps']} steps?"):
            remote.delete(f"/runs/{quote(found['id'], safe='')}")
            click.echo(f"deleted: {named}")


@main.command()
@click.argument("slug", required=False)
@as_json
def rules(slug: str | None, as_json: bool) -> None:
    """List the rules, or explain the one called SLUG."""
    if slug is None:
        return _list_rules(all_rules(), as_json)
    chosen = _rule_called(slug)
    if as_json:
        return _print_json(rule_text.facts(chosen))
    _print(rule_text.explanation(chosen))


def _rule_called(slug: str) -> Rule:
    by_slug = {rule.id: rule for rule in all_rules()}
    if slug in by_slug:
        return by_slug[slug]
    within = [known for known in by_slug if slug in known]
    near = ", ".join(within[:8] or get_close_matches(slug, by_slug, cutoff=0.4))
    hint = f"Near ones: {near}" if near else "`trainsanity rules` lists all"
    raise Failure(f"no rule is called {slug!r}. {hint}")


def _list_rules(found: Sequence[Rule], as_json: bool) -> None:
    if as_json:
        return _print_json([rule_text.facts(rule) for rule in found])
    rows = ((r.id, r.severity, r.explanation()["summary"]) for r in found)
    _print(table(("rule", "severity", "what is wrong"), rows))


@main.command()
@click.argument("folder", metavar="[DIR]", required=False, type=_FOLDER)
@asks_server
@as_json
@click.option("--keep", is_flag=True, help="Keep the spools of runs that were sent completely.")
def sync(
    folder: Path | None, url: str | None, api_key: str | None, as_json: bool, keep: bool
) -> None:
    """Send the runs spooled in DIR; default: where the callback spools.

    Exit status 2 where something could not be sent.
    """
    settings = _target(url, api_key).online()
    results = [
        result
        for each in _spool_folders(folder, settings)
        for result in sync_directory(
            each, settings.url, settings.api_key, keep=keep, on_progress=_show_progress
        )
    ]
    if as_json:
        _print_json([vars(result) for result in results])
    elif not results:
        click.echo("nothing to send")
    else:
        _print(table(("run", "outcome", "sent", "waiting", ""), map(_sync_cells, results)))
    if any(result.outcome in ("waiting", "refused", "unusable") for result in results):
        sys.exit(Failure.exit_code)


def _spool_folders(folder: Path | None, settings: Settings) -> list[Path]:
    if folder is not None:
        return [folder]
    return [each for each in (settings.spool_dir, settings.spare_spool_dir) if each.is_dir()]


def _show_progress(path: Path, sent: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{path.stem}: {sent} of {total} packets", nl=sent == total, err=True)


def _sync_cells(result: SyncResult) -> Sequence[object]:
    return (
        result.run_id,
        result.outcome,
        result.sent,
        result.pending,
        result.run_url or result.message,
    )


@main.command()
@asks_server
@as_json
def doctor(url: str | None, api_key: str | None, as_json: bool) -> None:
    """Check this machine: versions, server, key, clock, spool. Exit status 1 where one fails."""
    results = list(checkup.run(_target(url, api_key).settings))
    if as_json:
        _print_json([vars(result) for result in results])
    else:
        rows = ((r.state, r.name, " ".join(filter(None, (r.found, r.advice)))) for r in results)
        _print(table(("", "check", "found"), rows))
    if any(result.state == "fail" for result in results):
        sys.exit(1)


@main.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A few rows: an .npz file with the arrays x and, where there are labels, y and "
    "sample_weight; x:NAME for each of several inputs, y:NAME for outputs.",
)
@click.option(
    "--fail-on",
    type=click.Choice([severity.value for severity in Severity]),
    help="Exit with status 1 where something as bad as this or worse is found.",
)
@click.option("--causal", is_flag=True, help="Later positions must not change earlier outputs.")
def audit(model: Path, data: Path, fail_on: str | None, causal: bool) -> None:
    """Check the saved MODEL on a few rows, without training it."""
    parts = _arrays(data)
    loaded = _loaded_model(model)
    expect = trainsanity.Expect(causal=True) if causal else None
    report = trainsanity.audit(
        loaded, parts["x"], parts.get("y"), parts.get("sample_weight"), expect
    )
    if report.obstacle:
        raise Failure(f"{data} does not fit {model}: its arrays must be what `fit` takes.")
    if fail_on is not None and report.judgement.at_least(fail_on):
        sys.exit(1)


def _arrays(path: Path) -> dict[str, Any]:
    """What the archive holds: `x`, or a dict of what is called `x:NAME`; the same for `y`."""
    import numpy as np

    if not is_zipfile(path):
        raise Failure(
            f"{path} is no .npz archive of arrays. Write one with numpy.savez(path, x=..., y=...)."
        )
    parts: dict[str, Any] = {}
    try:
        with path.open("rb") as file, np.load(file) as archive:
            for name in archive.files:
                part, _, key = name.partition(":")
                if key:
                    parts.setdefault(part, {})[key] = archive[name]
                else:
                    parts[part] = archive[name]
    except (OSError, EOFError, ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise Failure(
            f"{path} cannot be read: {error}. "
            "Write plain numbers with numpy.savez(path, x=..., y=...)."
        ) from error
    if "x" not in parts:
        raise Failure(f"{path} must hold an array called x. Received: {sorted(parts)}")
    return parts


def _loaded_model(path: Path) -> Any:
    try:
        import keras
    except ImportError as error:
        raise Failure(f"auditing needs Keras and a backend: {error}") from error
    try:
        return keras.saving.load_model(path)
    except (OSError, ValueError, TypeError, LookupError, ImportError) as error:
        raise Failure(
            f"{path} cannot be loaded: {error}\n"
            "A model with classes of your own can be checked from Python: "
            "trainsanity.audit(model, x, y)."
        ) from error


def _print(text: Iterable[str]) -> None:
    for line in text:
        click.echo(printable(line))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


__all__ = ["Failure", "RemoteError", "main"]
