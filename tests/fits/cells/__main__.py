"""Trains every cell on every backend and prints one table: `make cells`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PAGE = Path(__file__).parents[3] / "docs" / "cells.md"
BACKENDS = ("tensorflow", "jax", "torch")
HEADING = """# Ways to train

Written by `make cells ARGS=--write`. Every cell is a real fit, trained with the callback and
without. *20 signals*: so many were compared with a calculation by hand from the data, batch by
batch, with nothing lost and nothing doubled; and weights, optimizer, metrics and history were the
same to the last bit without the callback. *Not testable*: the callback says why it cannot measure,
instead of measuring something else. *-*: the backend does not have this way.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make cells", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, help="of this one only, as JSON")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.backend:
        print(json.dumps(list(_rows(options.backend))))
        return 0
    rows = [row for backend in BACKENDS for row in _asked(backend)]
    page = _page(rows)
    print(page)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    return 0 if all(row["passed"] for row in rows) else 1


def _asked(backend: str) -> list[dict[str, Any]]:
    """The rows of a backend, from a process of its own: Keras takes one for good."""
    command = [sys.executable, "-m", __package__ or "", "--backend", backend]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    rows: list[dict[str, Any]] = json.loads(answer.stdout.splitlines()[-1])
    return rows


def _rows(backend: str) -> Any:
    from tests.fits.cells.cell import cells_of, run

    for cell in cells_of(backend):
        try:
            passed, result = True, run(cell)
        except AssertionError as error:
            passed, result = False, f"FAILS: {str(error).strip().splitlines()[0][:80]}"
            traceback.print_exc()
        print(f"{backend}: {cell.slug}: {result}", file=sys.stderr, flush=True)
        yield {
            "group": cell.group,
            "cell": cell.name,
            "backend": backend,
            "passed": passed,
            "result": result,
        }


def _page(rows: list[dict[str, Any]]) -> str:
    results = {(row["group"], row["cell"], row["backend"]): row["result"] for row in rows}
    cells = dict.fromkeys((row["group"], row["cell"]) for row in rows)
    lines = [HEADING, f"| group | cell | {' | '.join(BACKENDS)} |", "|" + " --- |" * 5]
    for cell in sorted(cells, key=lambda cell: cell[0]):
        found = [results.get((*cell, backend), "-") for backend in BACKENDS]
        lines.append(f"| {' | '.join([*cell, *found])} |")
    passed = sum(row["passed"] for row in rows)
    lines += ["", f"{passed} of {len(rows)} fits are as they must be."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
