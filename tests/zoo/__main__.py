"""Trains every case and prints which rule caught it: `make zoo`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.zoo.case import Case, Outcome, all_cases, run
from tests.zoo.study import FOUNDERS, STUDY, Bug

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
HEADING = """# The zoo

Written by `make zoo ARGS=--markdown`. Every row is a real Keras model, trained twice: with the
failure, and without it. *Caught*: the named rule spoke about the right object. *Twin silent*: about
the training without the failure nothing was said at `warning` or above.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="files under tests/zoo/bugs; all if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    chosen = [c for c in all_cases() if not options.names or c.name in options.names]
    outcomes = [_watched(case) for case in chosen]
    rows = list(_rows(outcomes, whole=not options.names))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(_table(rows))
        print("\n".join(_totals(rows)))
    if options.markdown:
        PAGE.write_text(_page(rows), encoding="utf-8")
    return 0 if all(o.is_caught == o.case.caught and o.is_twin_silent for o in outcomes) else 1


def _watched(case: Case) -> Outcome:
    outcome = run(case)
    word = "caught" if outcome.is_caught else "NOT CAUGHT"
    twin = "silent" if outcome.is_twin_silent else f"SPEAKS {outcome.twin}"
    others = f", also {', '.join(outcome.others)}" if outcome.others else ""
    line = f"{case.name}: {word} by {case.rule}{others}; twin {twin}; {outcome.seconds:.1f} s"
    print(line, file=sys.stderr, flush=True)
    return outcome


def _rows(outcomes: Iterable[Outcome], *, whole: bool) -> Iterable[dict[str, Any]]:
    """One row for each bug, in the order of the study; bugs without a case only if `whole`."""
    by_bug = {bug: outcome for outcome in outcomes for bug in outcome.case.bugs}
    for bug in (*STUDY, *FOUNDERS):
        outcome = by_bug.get(bug.id)
        if outcome or whole:
            yield _row(bug, outcome)


def _row(bug: Bug, outcome: Outcome | None) -> dict[str, Any]:
    facts = {
        "bug": bug.id,
        "title": bug.title,
        "category": bug.category,
        "impact": bug.impact,
        "catchable": bug.catchable,
    }
    if outcome is None:
        none = {"caught": False, "rule": None, "step": None, "twin_silent": None, "case": None}
        return facts | none | {"note": "no case", "live": False}
    return facts | {
        "caught": outcome.is_caught,
        "rule": outcome.case.rule,
        "step": outcome.first_step,
        "twin_silent": outcome.is_twin_silent,
        "case": outcome.case.name,
        "note": outcome.case.not_reachable,
        "live": outcome.case.live,
    }


def _totals(rows: list[dict[str, Any]]) -> Iterable[str]:
    study = [row for row in rows if row["bug"].isdigit()]
    for word in ("yes", "partly", "no"):
        some = [row for row in study if row["catchable"] == word]
        yield f"catchable {word!r}: {sum(row['caught'] for row in some)} of {len(some)} caught"
    founders = [row for row in rows if not row["bug"].isdigit()]
    yield f"founding cases: {sum(row['caught'] for row in founders)} of {len(founders)} caught"
    twins = {row["case"]: row["twin_silent"] for row in rows if row["case"]}
    yield f"healthy twins: {sum(twins.values())} of {len(twins)} silent"


def _cells(row: dict[str, Any]) -> list[str]:
    twin = {True: "yes", False: "NO", None: "-"}[row["twin_silent"]]
    return [
        row["bug"],
        row["title"],
        row["category"],
        row["impact"],
        row["catchable"],
        "yes" if row["caught"] else "no",
        row["rule"] or "-",
        "-" if row["step"] is None else str(row["step"]),
        twin,
    ]


COLUMNS = [
    "bug",
    "title",
    "category",
    "impact",
    "catchable",
    "caught",
    "rule",
    "step",
    "twin silent",
]


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _page(rows: list[dict[str, Any]]) -> str:
    lines = [HEADING, *(f"- {line}" for line in _totals(rows)), ""]
    header = [*COLUMNS, "file", "out of reach"]
    lines += [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for row in rows:
        file = f"[{row['case']}](../tests/zoo/bugs/{row['case']}.py)" if row["case"] else "-"
        cells = [cell.replace("|", "\\|") for cell in [*_cells(row), file, row["note"]]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
