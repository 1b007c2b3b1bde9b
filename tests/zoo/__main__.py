"""Trains every case and prints which rule caught it: `make zoo`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.zoo import page
from tests.zoo.case import Case, Outcome, all_cases, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="make zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="files under tests/zoo/bugs; all if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write docs/zoo.md and the totals in README.md; of files named, their rows alone",
    )
    options = parser.parse_args()
    chosen = [c for c in all_cases() if not options.names or c.name in options.names]
    outcomes = [_watched(case) for case in chosen]
    found = {bug: page.Measured.of(o) for o in outcomes for bug in o.case.bugs}
    table = page.rows(found, page.BUGS if not options.names else found)
    if options.json:
        print(json.dumps(table, indent=1))
    else:
        print(_table(table))
        print("\n".join(page.totals(table)))
    if options.write:
        known = page.measured_on(page.PAGE.read_text(encoding="utf-8")) if options.names else {}
        page.write(page.rows(known | found))
    return 0 if all(o.is_caught == o.case.caught and o.is_twin_silent for o in outcomes) else 1


def _watched(case: Case) -> Outcome:
    outcome = run(case)
    word = "caught" if outcome.is_caught else "NOT CAUGHT"
    twin = "silent" if outcome.is_twin_silent else f"SPEAKS {outcome.twin}"
    others = f", also {', '.join(outcome.others)}" if outcome.others else ""
    line = f"{case.name}: {word} by {case.rule}{others}; twin {twin}; {outcome.seconds:.1f} s"
    print(line, file=sys.stderr, flush=True)
    return outcome


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [page.COLUMNS[:9], *map(page.cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(9)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


if __name__ == "__main__":
    sys.exit(main())
