"""Memory of a long fit of very short steps, with the callback and without, each in its own process.

Both train the same dense model for as many batches; each prints its resident memory every so many
batches. What counts is how much more the watched process holds, and whether it grows.

    python benchmarks/memory.py                       # a million batches each
    python benchmarks/memory.py --minutes 10 --json   # as many as fit
    python benchmarks/memory.py --quick
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click
from overhead.command_line import Row, as_json_option, row, show

MIB = 1024.0 * 1024.0
BATCH = 2
STEPS_PER_EXECUTION = 50


@click.command()
@click.option("--quick", is_flag=True, help="20,000 batches: under a minute.")
@as_json_option
@click.option("--batches", default=1_000_000, show_default=True, help="Of each of the two fits.")
@click.option("--every", default=50_000, show_default=True, help="Batches between two readings.")
@click.option("--minutes", default=60.0, show_default=True, help="Most that each fit may take.")
@click.option("--fit", type=click.Choice(("plain", "watched")), hidden=True)
def main(
    quick: bool, as_json: bool, batches: int, every: int, minutes: float, fit: str | None
) -> None:
    """Resident memory over a long fit, with the callback and without."""
    if quick:
        batches, every = 20_000, 5_000
    if fit is not None:
        train(fit, batches, every, minutes)
        return
    readings = {}
    for subject in ("plain", "watched"):
        readings[subject] = dict(measure(subject, batches, every, minutes))
    rows = list(_rows(readings["plain"], readings["watched"]))
    show(rows, as_json=as_json)


def measure(subject: str, batches: int, every: int, minutes: float) -> Iterator[tuple[int, float]]:
    """Batches and MiB, as a process of its own reports them."""
    options = {"batches": batches, "every": every, "minutes": minutes, "fit": subject}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            batch, mib, seconds = json.loads(line)
            print(f"{subject}: {batch:,} batches, {mib:.1f} MiB, {seconds:.0f} s", file=sys.stderr)
            yield batch, mib
    if process.returncode:
        raise click.ClickException(f"the {subject} fit ended with status {process.returncode}")


def train(subject: str, batches: int, every: int, minutes: float) -> None:
    """In its own process: one long epoch; a line of JSON for every reading."""
    import keras
    import numpy as np
    import psutil

    from trainsanity import SanityCallback

    process, began = psutil.Process(), time.monotonic()

    class Reader(keras.callbacks.Callback):
        """Looks at the first execution after every so many batches."""

        due = every // 5  # the first once everything is compiled

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch + 1 < self.due:
                return
            self.due += every - self.due % every
            seconds = time.monotonic() - began
            print(json.dumps([batch + 1, process.memory_info().rss / MIB, seconds]), flush=True)
            self.model.stop_training = seconds > 60 * minutes

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * 1000, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=STEPS_PER_EXECUTION)
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[Any] = [Reader()]
        if subject == "watched":
            callbacks.append(SanityCallback("offline", spool_dir=folder, verbose=False))
        model.fit(
            endless(x), shuffle=False, steps_per_epoch=batches, verbose=0, callbacks=callbacks
        )


def endless(x: Any) -> Any:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1]))
    return data.cache().batch(BATCH, drop_remainder=True).repeat()


def _rows(plain: dict[int, float], watched: dict[int, float]) -> Iterator[Row]:
    both = sorted(plain.keys() & watched.keys())
    for batch in both:
        case = f"resident memory after {batch:,} batches"
        yield _row(case, "keras", plain[batch])
        yield _row(case, "trainsanity", watched[batch])
    first, last = both[0], both[-1]
    reached = f"by {last:,} batches"
    yield _row(f"more than without callback {reached}", "trainsanity", watched[last] - plain[last])
    for subject, values in (("keras", plain), ("trainsanity", watched)):
        yield _row(f"growth since batch {first:,} {reached}", subject, values[last] - values[first])


def _row(case: str, subject: str, value: float) -> Row:
    return row(case, subject, value, "MiB")


if __name__ == "__main__":
    main()
