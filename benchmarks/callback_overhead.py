"""What a callback adds to a training step, ours beside its peers', alternating in one run.

Every subject has a process of its own, in which fits with and without its callback take turns; the
processes take turns too, so that all see the same machine. The figure is the time per batch in the
later half of the epochs, with the callback less without: the median over the rounds.

One process differs from the next by some hundredths of a step, whatever it runs, and more rounds in
it do not even that out. So each subject may be started several times; the figure is then the mean
over its processes, and its standard error is printed beside it.

With two epochs of some seconds it is the cost of a fit that has just begun, audits of the first
minutes included. More epochs show what it comes to in a long training.

    python benchmarks/callback_overhead.py --quick
    python benchmarks/callback_overhead.py --model lstm --no-peers --processes 8 --rounds 2
    python benchmarks/callback_overhead.py --model lstm --no-peers --processes 8 --no-audits
    python benchmarks/callback_overhead.py --model transformer --batch-size 64 --epochs 20
    python benchmarks/callback_overhead.py --backend jax --peer mlflow=/venvs/mlflow/bin/python
    python benchmarks/callback_overhead.py --server slow --json
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path

import click
from overhead.command_line import MODELS, Row, environment, row, show, training_options
from overhead.servers import SERVERS

HERE = Path(__file__).parent / "overhead"
PEERS = ("tensorboard", "mlflow", "wandb", "aim")
MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "aim": "aim"}


@dataclass
class Times:
    """Of one subject on one model: each round's fit without and with the callback.

    A fit's times are in microseconds: `mean`, `median` and `p99` of a step, the tenth part of the
    steps that are `fast`, which what else runs on the machine disturbs least, the time of all
    processors in a step, and, with the callback, `hook_p99` of its batch hooks.
    """

    plain: list[Row] = field(default_factory=list)
    watched: list[Row] = field(default_factory=list)

    def added(self, what: str) -> float:
        """Median over the rounds of the difference within a round: drift of the machine cancels."""
        pairs = zip(self.plain, self.watched, strict=True)
        return statistics.median(watched[what] - plain[what] for plain, watched in pairs)

    def alone(self, what: str) -> float:
        return statistics.median(plain[what] for plain in self.plain)

    def hook_p99(self) -> float:
        return statistics.median(watched["hook_p99"] for watched in self.watched)


@dataclass
class Measured:
    """Of one subject on one model: the times of each of its processes."""

    processes: list[Times] = field(default_factory=list)

    def added(self, what: str) -> float:
        return statistics.mean(self._added(what))

    def standard_error(self, what: str) -> float:
        """Of `added`, in microseconds: nothing is known of it where there is one process."""
        added = self._added(what)
        return statistics.stdev(added) / len(added) ** 0.5 if len(added) > 1 else float("nan")

    def alone(self, what: str) -> float:
        return statistics.mean(times.alone(what) for times in self.processes)

    def hook_p99(self) -> float:
        return statistics.mean(times.hook_p99() for times in self.processes)

    def _added(self, what: str) -> list[float]:
        return [times.added(what) for times in self.processes]


@dataclass(frozen=True)
class Fit:
    """What is trained: the model's name, the batches of an epoch and the rows of each, epochs."""

    model: str
    batches: int
    batch_size: int
    epochs: int


class Worker:
    """The process of one subject."""

    def __init__(self, python: str, subject: str, fit: Fit, env: dict[str, str]):
        self.subject = subject
        self.times = Times()
        # A pipe that nobody reads would fill up.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py"), subject, *map(str, astuple(fit))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )

    def hello(self) -> Row:
        return self._answer()

    def round(self) -> None:
        """One fit without and one with the callback."""
        self.times.plain.append(self._fit("none"))
        self.times.watched.append(self._fit("subject"))

    def _fit(self, what: str) -> Row:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Row:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise click.ClickException(f"{self.subject} failed:\n{self._errors.read()[-3000:]}")
        answer: Row = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@click.command()
@click.option("--quick", is_flag=True, help="The smallest model and few rounds: under a minute.")
@training_options
@click.option("--rounds", default=7, show_default=True, help="Times that the subjects take turns.")
@click.option(
    "--processes", default=1, show_default=True, help="Times that each subject is started anew."
)
@click.option("--batches", default=500, show_default=True, help="Batches of an epoch.")
@click.option("--batch-size", default=32, show_default=True)
@click.option(
    "--epochs",
    default=2,
    show_default=True,
    type=click.IntRange(2),
    help="Epochs of a fit; the later half is timed.",
)
@click.option("--server", type=click.Choice(sorted(SERVERS)), default="up", show_default=True)
@click.option(
    "--peer", "peers", multiple=True, metavar="NAME=PYTHON", help="Interpreter of a peer."
)
@click.option("--no-peers", is_flag=True, help="Ours alone, such as for a budget of its own.")
@click.option(
    "--no-audits", is_flag=True, help="Probes alone: audits have a share of time of their own."
)
def main(
    quick: bool,
    as_json: bool,
    backend: str,
    models: tuple[str, ...],
    rounds: int,
    processes: int,
    batches: int,
    batch_size: int,
    epochs: int,
    server: str,
    peers: tuple[str, ...],
    no_peers: bool,
    no_audits: bool,
) -> None:
    """Microseconds that a callback adds to a training step, beside its peers'."""
    if quick:
        models, rounds, batches = models or ("dense",), min(rounds, 3), min(batches, 300)
    rows: list[Row] = []
    with SERVERS[server]() as url:
        env = environment(backend) | {"TRAINSANITY_URL": url}
        env |= {"AUDIT_BUDGET": "0"} if no_audits else {}
        subjects = {"trainsanity": sys.executable} if no_peers else _subjects(peers)
        for model in models or MODELS:
            print(
                f"{model} on {backend}: {processes} times {rounds} rounds of {', '.join(subjects)}",
                file=sys.stderr,
            )
            fit = Fit(model, batches, batch_size, epochs)
            measured = {subject: Measured() for subject in subjects}
            for _ in range(processes):
                for subject, times in measure(fit, subjects, rounds, env).items():
                    measured[subject].processes.append(times)
                    print(f"{subject}: {times.added('mean'):+,.0f} µs", file=sys.stderr)
            rows += _rows(f"{model}, {backend}", f"server {server}", measured)
    show(rows, as_json=as_json)


def _subjects(peers: tuple[str, ...]) -> dict[str, str]:
    """Interpreter of every subject: the given ones, and what is installed beside us."""
    given = dict(peer.split("=", 1) for peer in peers)
    unknown = sorted(set(given) - set(PEERS))
    if unknown:
        raise click.BadParameter(f"peers are {', '.join(PEERS)}. Received: {', '.join(unknown)}")
    found = {"trainsanity": sys.executable}
    for name in PEERS:
        python = given.get(name, sys.executable)
        if _has(python, MODULES[name]):
            found[name] = python
        else:
            print(f"left out: {name} is not installed for {python}", file=sys.stderr)
    return found


def _has(python: str, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code]).returncode == 0


def measure(
    fit: Fit, subjects: dict[str, str], rounds: int, env: dict[str, str]
) -> dict[str, Times]:
    """Times of every subject. A first round warms up and does not count, unless fits are long."""
    with contextlib.ExitStack() as stack:
        workers = []
        for subject, python in subjects.items():
            worker = Worker(python, subject, fit, env)
            stack.callback(worker.close)
            workers.append(worker)
        for worker in workers:
            worker.hello()
        if fit.epochs == 2:
            for worker in workers:
                worker.round()
                worker.times = Times()
        for _ in range(rounds):
            for worker in workers:
                worker.round()
        return {worker.subject: worker.times for worker in workers}


def _rows(case: str, server: str, measured: dict[str, Measured]) -> Iterator[Row]:
    ours = measured["trainsanity"]
    yield row(f"{case}: step without callback", "keras", ours.alone("mean"), "µs")
    for subject, times in measured.items():
        here = f", {server}" if subject == "trainsanity" else ""
        added, error, step = times.added("mean"), times.standard_error("mean"), times.alone("mean")
        yield row(f"{case}: added per batch{here}", subject, added, "µs")
        yield row(f"{case}: added per batch{here}", subject, 100 * added / step, "% of step")
        if len(times.processes) > 1:
            yield row(f"{case}: standard error of it{here}", subject, error, "µs")
            yield row(
                f"{case}: standard error of it{here}", subject, 100 * error / step, "% of step"
            )
        yield row(f"{case}: added to the median step{here}", subject, times.added("median"), "µs")
        yield row(f"{case}: added to the fast step{here}", subject, times.added("fast"), "µs")
        used = times.added("processor")
        yield row(f"{case}: processor time added{here}", subject, used, "µs")
        # Work outside of the hooks, such as around the step, shows here.
        yield row(f"{case}: added to the p99 step{here}", subject, times.added("p99"), "µs")
        yield row(f"{case}: batch hook p99{here}", subject, times.hook_p99(), "µs")


if __name__ == "__main__":
    main()
