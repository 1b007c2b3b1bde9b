"""Time from `fit` to the end of its first batch, with the callback and without.

Every fit has a process of its own, as nothing is compiled anew in one that has trained before. Fits
with and without take turns. Importing and making the callback count too; its files are compiled
before, as pip does when it installs a package.

    python benchmarks/startup.py --quick
    python benchmarks/startup.py --backend jax --rounds 5
    python benchmarks/startup.py --model lstm --profile      # where our own time goes
"""

from __future__ import annotations

import compileall
import cProfile
import importlib.util
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click
from overhead.command_line import MODELS, Row, environment, row, show, training_options

BATCHES, BATCH_SIZE = 4, 32


@click.command()
@click.option("--quick", is_flag=True, help="The smallest model, twice: under a minute.")
@training_options
@click.option("--rounds", default=5, show_default=True, help="Fits of each kind.")
@click.option("--profile", is_flag=True, help="Print where a watched fit spends its time.")
@click.option("--fit", type=click.Choice(("plain", "watched")), hidden=True)
def main(
    quick: bool,
    as_json: bool,
    backend: str,
    models: tuple[str, ...],
    rounds: int,
    profile: bool,
    fit: str | None,
) -> None:
    """Seconds that the callback adds to the time until the first batch has ended."""
    if fit is not None:
        print(json.dumps(profiled(models[0]) if profile else seconds_of(models[0], fit)))
        return
    if quick:
        models, rounds = models or ("dense",), min(rounds, 2)
    compile_callback()
    rows: list[Row] = []
    for model in models or MODELS:
        if profile:
            measured(model, backend, "watched", "--profile")
            continue
        rows += _rows(f"{model}, {backend}", *_rounds(model, backend, rounds))
    show(rows, as_json=as_json)


def compile_callback() -> None:
    """A checkout may be run without ever keeping what Python has compiled."""
    found = importlib.util.find_spec("trainsanity")
    assert found is not None
    for folder in found.submodule_search_locations or ():
        compileall.compile_dir(folder, quiet=1)


def _rounds(model: str, backend: str, rounds: int) -> tuple[list[float], list[float]]:
    plain, watched = [], []
    for _ in range(rounds):
        plain.append(measured(model, backend, "plain"))
        watched.append(measured(model, backend, "watched"))
    return plain, watched


def measured(model: str, backend: str, kind: str, *options: str) -> float:
    """In a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, f"--model={model}", f"--fit={kind}", *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment(backend),
    )
    return float(result.stdout.splitlines()[-1])


def seconds_of(model: str, kind: str) -> float:
    """From before the callback is imported to the end of the first batch."""
    import keras
    from overhead.models import MODELS as BUILDERS

    class FirstBatch(keras.callbacks.Callback):
        ended = 0.0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ended = self.ended or time.perf_counter()

    keras.utils.set_random_seed(0)
    made, x, y = BUILDERS[model](BATCHES * BATCH_SIZE)
    first = FirstBatch()
    callbacks: list[Any] = [first]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if kind == "watched":
            from trainsanity import SanityCallback

            callbacks.append(SanityCallback("offline", spool_dir=folder, verbose=False))
        made.fit(x, y, batch_size=BATCH_SIZE, verbose=0, callbacks=callbacks)
    return first.ended - began


def profiled(model: str) -> float:
    """Prints to the terminal; a profile of the whole fit, audits at its end included."""
    profile = cProfile.Profile()
    seconds = float(profile.runcall(seconds_of, model, "watched"))
    stats = pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative")
    stats.print_stats("trainsanity", 45)
    return seconds


def _rows(case: str, plain: list[float], watched: list[float]) -> Iterator[Row]:
    before, after = statistics.median(plain), statistics.median(watched)
    yield row(f"{case}: time to the first batch", "keras", before, "s")
    yield row(f"{case}: time to the first batch", "trainsanity", after, "s")
    yield row(f"{case}: added", "trainsanity", after - before, "s")
    yield row(f"{case}: added", "trainsanity", 100 * (after - before) / before, "%")


if __name__ == "__main__":
    main()
