"""What the commands that measure the callback's cost have in common: options, rows, the answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import click

# Of models.py, which needs Keras to be imported.
MODELS = ("dense", "cnn", "deep-cnn", "wide", "embedding", "lstm", "transformer")
# glibc gives large blocks back, or keeps them, by what the process has done before. Where each step
# takes them anew, page by page, it scatters by more than any callback costs.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
Row = dict[str, Any]
Command = Callable[..., None]

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print rows of JSON instead of a table."
)


def training_options(command: Command) -> Command:
    """What is trained, and how the answer looks."""
    backend = click.option("--backend", default="tensorflow", show_default=True)
    models = click.option(
        "--model", "models", multiple=True, type=click.Choice(MODELS), help="All by default."
    )
    return as_json_option(backend(models(command)))


def environment(backend: str) -> dict[str, str]:
    """Of a process that trains on this backend."""
    names = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **names, **KEEP_MEMORY}


def row(case: str, subject: str, value: float, unit: str) -> Row:
    return {"case": case, "subject": subject, "value": round(value, 3), "unit": unit}


def show(rows: list[Row], *, as_json: bool) -> None:
    print(json.dumps(rows, indent=1) if as_json else _table(rows))


def _table(rows: list[Row]) -> str:
    case, subject = (max((len(row[key]) for row in rows), default=0) for key in ("case", "subject"))
    return "\n".join(
        f"{row['case']:<{case}}  {row['subject']:<{subject}}  {row['value']:>12,.2f} {row['unit']}"
        for row in rows
    )
