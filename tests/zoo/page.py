"""The zoo's table as docs/zoo.md and its totals in README.md: written, never typed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.zoo.case import Case, Outcome, all_cases
from tests.zoo.study import BUGS, FOUNDERS, SINCE, STUDY, UNREACHED, Bug

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "zoo.md"
README = ROOT / "README.md"
MARKS = ("<!-- zoo: written by `make zoo ARGS=--write` -->\n", "<!-- end of zoo -->\n")

HEADING = """# The zoo

Written by `make zoo ARGS=--write`. Every row is a real Keras model, trained twice: with the
failure, and without it. *Caught*: the named rule spoke about the right object, at `warning` or
above, or, where it says so, as *advice*. *Twin silent*: about the training without the failure
nothing was said at `warning` or above. Numbers are those of the replication package of *The case of
silent bugs in TensorFlow/Keras* (F. Tambon et al., ICSE 2023); F are the cases that founded this
product, L were found since, most of them in the installed Keras.
"""

COLUMNS = (
    *("bug", "title", "category", "impact", "catchable", "caught", "rule", "step", "twin silent"),
    *("file", "out of reach"),
)


@dataclass(frozen=True)
class Measured:
    """What a training showed."""

    caught: bool
    step: int | None
    twin_silent: bool

    @classmethod
    def of(cls, outcome: Outcome) -> Measured:
        return cls(outcome.is_caught, outcome.first_step, outcome.is_twin_silent)


def rows(measured: Mapping[str, Measured], bugs: Iterable[str] = BUGS) -> list[dict[str, Any]]:
    """One row for each bug, from its case and what was measured of that, by the bug's id."""
    cases = {bug: case for case in all_cases() for bug in case.bugs}
    return [_row(BUGS[bug], cases.get(bug), measured.get(bug)) for bug in bugs]


def _row(bug: Bug, case: Case | None, found: Measured | None) -> dict[str, Any]:
    return {
        "bug": bug.id,
        "title": bug.title,
        "category": bug.category,
        "impact": bug.impact,
        "catchable": bug.catchable,
        "caught": found is not None and found.caught,
        "advice": case is not None and case.advice,
        "rule": case.rule if case else None,
        "step": found.step if found else None,
        "twin_silent": found.twin_silent if found else None,
        "case": case.name if case else None,
        "note": case.not_reachable if case else UNREACHED.get(bug.id, "no case"),
        "live": case is not None and case.live,
    }


def totals(table: list[dict[str, Any]]) -> list[str]:
    """One line for each kind of bug, and one for the twins."""
    by_id = {row["bug"]: row for row in table}
    kinds = {
        f"catchable {word!r}": [bug for bug in STUDY if bug.catchable == word]
        for word in ("yes", "partly", "no")
    }
    kinds |= {"founding cases": list(FOUNDERS), "found since": list(SINCE)}
    lines = []
    for name, bugs in kinds.items():
        some = [by_id[bug.id] for bug in bugs if bug.id in by_id]
        if some:
            lines.append(f"{name}: {_caught(some)} of {len(some)} caught")
    silent, twins = _twins(table)
    return [*lines, f"healthy twins: {silent} of {twins} silent"]


def _caught(some: list[dict[str, Any]]) -> int:
    return sum(row["caught"] for row in some)


def _twins(table: list[dict[str, Any]]) -> tuple[int, int]:
    twins = {row["case"]: bool(row["twin_silent"]) for row in table if row["case"]}
    return sum(twins.values()), len(twins)


def cells(row: dict[str, Any]) -> list[str]:
    twin = {True: "yes", False: "NO", None: "-"}[row["twin_silent"]]
    caught = ("advice" if row["advice"] else "yes") if row["caught"] else "no"
    step = "-" if row["step"] is None else str(row["step"])
    told = [row[name] for name in ("bug", "title", "category", "impact", "catchable")]
    return [*told, caught, row["rule"] or "-", step, twin]


def page(table: list[dict[str, Any]]) -> str:
    lines = [HEADING, *(f"- {line}" for line in totals(table)), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for row in table:
        file = f"[{row['case']}](../tests/zoo/bugs/{row['case']}.py)" if row["case"] else "-"
        escaped = [cell.replace("|", "\\|") for cell in (*cells(row), file, row["note"])]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def summary(table: list[dict[str, Any]]) -> str:
    """The totals in one paragraph, for README.md."""
    study = [row for row in table if row["bug"].isdigit()]
    yes, partly = ([r for r in study if r["catchable"] == word] for word in ("yes", "partly"))
    live = len({row["case"] for row in table if row["live"]})
    silent, twins = _twins(table)
    advice = sum(row["caught"] and row["advice"] for row in study)
    return (
        f"Of the {len(study)} silent bugs of a published study of TensorFlow and Keras, each "
        f"trained for real, {_caught(yes)} of the {len(yes)} that a callback can catch are "
        f"caught, and {_caught(partly)} of the {len(partly)} that it can catch in part; {advice} "
        f"of them, cosmetic ones and matters of taste, as advice. {live} files show failures that "
        f"Keras has by itself today. Of {twins} healthy twins {silent} stay "
        "silent. [The table](docs/zoo.md), with what is out of reach.\n"
    )


def with_summary(readme: str, table: list[dict[str, Any]]) -> str:
    """README.md with the block between the marks written anew."""
    begin, end = (re.escape(mark) for mark in MARKS)
    block = MARKS[0] + _wrapped(summary(table)) + MARKS[1]
    return re.sub(f"{begin}.*?{end}", lambda _: block, readme, flags=re.DOTALL)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False) + "\n"


def measured_on(page_text: str) -> dict[str, Measured]:
    """What the page says was measured, by bug."""
    found = {}
    for line in page_text.splitlines():
        parts = [part.strip() for part in line.strip("|").split(" | ")]
        if len(parts) == len(COLUMNS) and parts[0] in BUGS and parts[8] != "-":
            step = None if parts[7] == "-" else int(parts[7])
            found[parts[0]] = Measured(parts[5] != "no", step, parts[8] == "yes")
    return found


def write(table: list[dict[str, Any]]) -> None:
    PAGE.write_text(page(table), encoding="utf-8")
    README.write_text(with_summary(README.read_text(encoding="utf-8"), table), encoding="utf-8")
