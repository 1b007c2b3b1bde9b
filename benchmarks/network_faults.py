"""Seconds that a fit takes while the network or the server fails, beside one without the callback.

Each fit has a process of its own, a fork made before the backend has done anything, and trains the
same small model, eagerly. `training` is the time from the call of `fit` to its last batch, `end`
the time from there until `fit` returns: audits, and what `close_timeout` (here one second) lets it
wait for the server. Two rows for each fault; `right` is a server that takes everything.

    python benchmarks/network_faults.py                  # five fits each
    python benchmarks/network_faults.py --quick --json
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from overhead.command_line import Row, as_json_option, environment, row, show

CLIENT_TESTS = Path(__file__).parents[1] / "tests" / "client"  # where the faulty servers are
sys.path.insert(0, str(CLIENT_TESTS))
PLAIN = "plain"
CLOSE_SECONDS = 1.0
QUICK = ("right", "black hole", "refused", "500")


@click.command()
@click.option("--quick", is_flag=True, help="Four servers, two fits each: under a minute.")
@as_json_option
@click.option("--rounds", default=5, show_default=True, help="Fits of each kind.")
@click.option("--backend", default="tensorflow", show_default=True)
def main(quick: bool, as_json: bool, rounds: int, backend: str) -> None:
    """Time of a fit under each fault of the network, beside that without the callback."""
    from faults import FAULTS, OVERCOME

    servers = {**OVERCOME, **FAULTS}
    names = QUICK if quick else tuple(servers)
    rounds = min(rounds, 2) if quick else rounds
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            urls = {name: stack.enter_context(servers[name]()) for name in names}
            train(Path(folder), {PLAIN: "", **urls}, backend)
            for name in (PLAIN, *names):
                facts = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
                for part, key in (("training", "trained"), ("end", "ended")):
                    seconds.setdefault(name, {}).setdefault(part, []).append(facts[key])
    show(list(rows(seconds)), as_json=as_json)


def train(folder: Path, urls: dict[str, str], backend: str) -> None:
    """One fit for each address, one after the other."""
    program = CLIENT_TESTS / "trainings.py"
    servers = {name: (url, CLOSE_SECONDS) for name, url in urls.items()}
    done = subprocess.run(
        [sys.executable, str(program), str(folder), json.dumps(servers), "1"],
        env=environment(backend),
        capture_output=True,
        text=True,
    )
    if done.returncode or set(json.loads(done.stdout.splitlines()[-1]).values()) != {0}:
        raise click.ClickException(f"a fit failed:\n{done.stdout}\n{done.stderr[-2000:]}")


def rows(seconds: dict[str, dict[str, list[float]]]) -> list[Row]:
    return [
        row(f"{name}, {part}", PLAIN if name == PLAIN else "trainsanity", value, "s")
        for name, parts in seconds.items()
        for part, values in parts.items()
        for value in [statistics.median(values)]
    ]


if __name__ == "__main__":
    main()
