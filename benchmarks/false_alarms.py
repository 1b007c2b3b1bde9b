"""How often healthy trainings raise an alarm: random ones, each from a seed that brings it back.

Architecture, optimizer, schedule, data, batch size, dtype, compilation and callbacks are drawn from
the seed; labels follow from the inputs, so that every model has something to learn. An alarm is an
alert at `warning` or above. A training that fails, or whose weights end as NaN or never move,
without the callback, too, is sick, and counted apart.

    python benchmarks/false_alarms.py --runs 200
    python benchmarks/false_alarms.py --seed 17 --advice
    python benchmarks/false_alarms.py --runs 200 --resume trained.jsonl --write
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from overhead.resuming import Kept, resume_option

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if TYPE_CHECKING:
    from random_fits.fit import Outcome

PAGE = Path(__file__).parent.parent / "docs" / "false-alarms.md"
QUICK_SECONDS = 40.0
SMALLEST_QUICK = 3


@dataclass(frozen=True)
class Told:
    """What was drawn for a seed, and what was said about it."""

    seed: int
    words: str
    is_sick: bool
    alarms: list[str]
    advice: list[str]

    @classmethod
    def of(cls, outcome: Outcome) -> Told:
        words, sick = outcome.words, outcome.is_sick
        return cls(outcome.seed, words, sick, outcome.alarms, outcome.advice)


def trained(seeds: Iterator[int], seconds: float, kept: Kept) -> Iterator[Told]:
    """One after the other, until the seeds or (after a few) the seconds are used up; what is kept
    is not trained again.
    """
    from random_fits.fit import random_fit

    begun = time.perf_counter()
    for done, seed in enumerate(seeds):
        if done >= SMALLEST_QUICK and time.perf_counter() - begun > seconds:
            return
        known = kept.of(seed)
        if known is not None:
            yield Told(**known)
            continue
        told = Told.of(random_fit(seed))
        kept.keep(asdict(told))
        yield told


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


def tell(one: Told, *, advice: bool) -> None:
    lines = [*one.alarms, *(one.advice if advice else [])]
    if lines or advice:
        sick = " (sick without the callback, too)" if one.is_sick else ""
        click.echo(f"seed {one.seed}: {one.words}{sick}")
    for line in dict.fromkeys(lines):
        click.echo(f"    {line}")


def rows_of(runs: list[Told]) -> list[dict[str, Any]]:
    healthy = [run for run in runs if not run.is_sick]
    loud = sum(bool(run.alarms) for run in healthy)
    alarms = sum(len(run.alarms) for run in healthy)
    return [
        _row("sick runs, left out", len(runs) - len(healthy), "runs"),
        _row("healthy runs", len(healthy), "runs"),
        _row("runs with an alarm", loud, "runs"),
        _row("alarms per run", alarms / max(len(healthy), 1), "alarms"),
        _row("share of runs with an alarm, 95 % bound", upper_bound(loud, len(healthy)), "1"),
    ]


def seeds_of(runs: list[Told]) -> Iterator[str]:
    """Which seeds bring back what is worth a look."""
    kinds = {
        "with an alarm": [run.seed for run in runs if run.alarms and not run.is_sick],
        "that are sick": [run.seed for run in runs if run.is_sick],
    }
    for words, seeds in kinds.items():
        if seeds:
            yield f"Seeds {words}: {', '.join(map(str, seeds))}."


def page(runs: list[Told]) -> str:
    """As Markdown."""
    intro = str(__doc__).partition("\n\n    python")[0]
    lines = ["# False alarms", "", "Written by `python benchmarks/false_alarms.py --write`.", intro]
    first, last = runs[0].seed, runs[-1].seed
    lines += ["", f"Seeds {first} to {last}, on TensorFlow.", "", "| what | value | unit |"]
    lines += ["| --- | ---: | --- |"]
    lines += [f"| {r['case']} | {r['value']:.4g} | {r['unit']} |" for r in rows_of(runs)]
    return "\n".join([*lines, "", *seeds_of(runs)]).rstrip() + "\n"


@click.command(help=__doc__)
@click.option("--runs", default=200, show_default=True, help="How many trainings.")
@click.option("--first-seed", default=0, show_default=True, help="Seed of the first one.")
@click.option("--seed", type=int, help="Only the training of this seed.")
@click.option("--advice", is_flag=True, help="Print every run, and what is only advice.")
@click.option("--quick", is_flag=True, help="Under a minute: as many as fit into it.")
@click.option("--json", "as_json", is_flag=True, help="A list for programs.")
@click.option("--write", is_flag=True, help="Write docs/false-alarms.md.")
@resume_option
def main(
    runs: int,
    first_seed: int,
    seed: int | None,
    advice: bool,
    quick: bool,
    as_json: bool,
    write: bool,
    resume: Path | None,
) -> None:
    seeds = iter([seed] if seed is not None else range(first_seed, first_seed + runs))
    seen: list[Told] = []
    kept = Kept(resume, key_of=lambda told: told["seed"])
    for one in trained(seeds, QUICK_SECONDS if quick else float("inf"), kept):
        seen.append(one)
        if not as_json:
            tell(one, advice=advice)
    rows = rows_of(seen)
    if write:
        PAGE.write_text(page(seen), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['case']:<42} {row['value']:>8.4g} {row['unit']}")
    for line in seeds_of(seen):
        click.echo(line)


def _row(case: str, value: float, unit: str) -> dict[str, Any]:
    return {"case": case, "subject": "trainsanity", "value": value, "unit": unit}


if __name__ == "__main__":
    main()
