"""How often healthy trainings raise an alarm: random ones, each from a seed that brings it back.

Architecture, optimizer, schedule, data, batch size, dtype, compilation and callbacks are drawn from
the seed; labels follow from the inputs, so that every model has something to learn. An alarm is an
alert at `warning` or above. A training whose weights end as NaN without the callback, too, is sick,
and counted apart.

    python benchmarks/false_alarms.py --runs 200
    python benchmarks/false_alarms.py --seed 17 --advice
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if TYPE_CHECKING:
    from random_fits.fit import Outcome

QUICK_SECONDS = 40.0
SMALLEST_QUICK = 3


def outcomes(seeds: Iterator[int], seconds: float) -> Iterator[Outcome]:
    """One after the other, until the seeds or (after a few) the seconds are used up."""
    from random_fits.fit import random_fit

    begun = time.perf_counter()
    for done, seed in enumerate(seeds):
        if done >= SMALLEST_QUICK and time.perf_counter() - begun > seconds:
            return
        yield random_fit(seed)


def upper_bound(alarms: int, runs: int) -> float:
    """The share of runs with an alarm that is not exceeded with 95 % confidence.

    Source: Clopper and Pearson 1934, one-sided; for none in n runs 1 - 0.05^(1/n), about 3/n. The
    bound is where the binomial chance of so few alarms falls to 5 %.
    """
    from math import comb

    low, high = alarms / max(runs, 1), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        few = sum(comb(runs, k) * middle**k * (1 - middle) ** (runs - k) for k in range(alarms + 1))
        low, high = (middle, high) if few > 0.05 else (low, middle)
    return high


def tell(outcome: Outcome, *, advice: bool) -> None:
    lines = [*outcome.alarms, *(outcome.advice if advice else [])]
    if lines or advice:
        sick = " (NaN without the callback, too)" if outcome.is_sick else ""
        click.echo(f"seed {outcome.seed}: {outcome.words}{sick}")
    for line in dict.fromkeys(lines):
        click.echo(f"    {line}")


@click.command(help=__doc__)
@click.option("--runs", default=200, show_default=True, help="How many trainings.")
@click.option("--first-seed", default=0, show_default=True, help="Seed of the first one.")
@click.option("--seed", type=int, help="Only the training of this seed.")
@click.option("--advice", is_flag=True, help="Print every run, and what is only advice.")
@click.option("--quick", is_flag=True, help="Under a minute: as many as fit into it.")
@click.option("--json", "as_json", is_flag=True, help="A list for programs.")
def main(
    runs: int, first_seed: int, seed: int | None, advice: bool, quick: bool, as_json: bool
) -> None:
    seeds = iter([seed] if seed is not None else range(first_seed, first_seed + runs))
    loud, sick, count, alarms = [], [], 0, 0
    for outcome in outcomes(seeds, QUICK_SECONDS if quick else float("inf")):
        if not as_json:
            tell(outcome, advice=advice)
        if outcome.is_sick:
            sick.append(outcome.seed)
            continue
        count += 1
        alarms += len(outcome.alarms)
        if outcome.alarms:
            loud.append(outcome.seed)
    rows: list[dict[str, Any]] = [
        _row("sick runs, left out", len(sick), "runs"),
        _row("healthy runs", count, "runs"),
        _row("runs with an alarm", len(loud), "runs"),
        _row("alarms per run", alarms / max(count, 1), "alarms"),
        _row("share of runs with an alarm, 95 % bound", upper_bound(len(loud), count), "1"),
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['case']:<42} {row['value']:>8.4g} {row['unit']}")
    if loud:
        click.echo(f"seeds with an alarm: {', '.join(map(str, loud))}")
    if sick:
        click.echo(f"seeds that are sick: {', '.join(map(str, sick))}")


def _row(case: str, value: float, unit: str) -> dict[str, Any]:
    return {"case": case, "subject": "trainsanity", "value": value, "unit": unit}


if __name__ == "__main__":
    main()
