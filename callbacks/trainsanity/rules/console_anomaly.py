from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trainsanity.rules.comparison import finding_of, maps, measured, merged, number, text, whole
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class ConsoleAnomaly(Rule):
    """The terminal shows something that does not fit the run.

    Compares: bytes and lines printed with the steps that were counted and with earlier epochs; the
    length of a bar with the width of terminals; epoch numbers printed with the epoch that ran;
    warnings with the code they come from.

    Why: a progress bar that floods the log hides the line that matters, and warnings about
    somebody else's code teach people to ignore warnings.

    Try: verbose=2 in logs that are not terminals.

    Source: TensorFlow issues 32320, 38810, 38222, 44178, 34619. Other callbacks print on
    purpose, so this is only advice. What C++ code writes to the descriptor itself is not seen.
    """

    id = "console-anomaly"
    severity = Severity.ADVICE
    heuristic = True
    needs = ("audit:console",)

    # A redrawn progress bar with ten metrics is about 500 bytes; eight times that.
    bytes_a_batch: int = 4096
    lines_factor: float = 5.0  # times the usual epoch
    lines_floor: int = 50  # lines below which nobody minds
    epochs: int = 3  # earlier epochs that make a usual one
    widest: int = 500  # signs; no terminal shows a longer bar on one line
    between: int = 3  # lines on stderr in an epoch that cut through the progress bar

    @staticmethod
    def fires_on() -> RunHistory:
        """A bar that draws one sign for each sample."""
        return history(audits=[("console", 10, _FACTS | {"bytes": 90_000})])

    @staticmethod
    def quiet_on() -> RunHistory:
        return history(audits=[("console", 10, _FACTS)])

    def check(self, run: RunView) -> list[Finding]:
        new = measured(run, "console")
        every = run.audits("console")
        return merged(
            found for audit in new for found in self._check(audit, every[: every.index(audit)])
        )

    def _check(self, audit: Audit, before: list[Audit]) -> Iterator[Finding]:
        facts = audit.facts
        printed, batches = whole(facts, "bytes") or 0, whole(facts, "batches") or 0
        if batches and printed > self.bytes_a_batch * batches:
            yield _finding(
                audit,
                "amount of output",
                f"{number(printed / batches)} bytes printed for every step",
                f"{printed:,} bytes were printed in an epoch of {batches:,} steps. A progress bar "
                "draws against a wrong total, or every step prints.",
                (Witness("steps counted", batches, "steps"), Witness("printed", printed, "bytes")),
                "Use verbose=2, and check the total of the progress bar.",
            )
        yield from self._lines(audit, before)
        yield from self._bar(audit)
        yield from self._between(audit)
        yield from _headers(audit)
        yield from _error_lines(audit)
        yield from _warnings(audit)

    def _lines(self, audit: Audit, before: list[Audit]) -> Iterator[Finding]:
        lines = whole(audit.facts, "lines") or 0
        earlier = [n for a in before if (n := whole(a.facts, "lines")) is not None]
        if len(earlier) < self.epochs:
            return
        usual = float(np.median(earlier))
        if lines > max(self.lines_floor, self.lines_factor * usual):
            yield _finding(
                audit,
                "lines of output",
                f"{lines:,} lines in this epoch, usually {number(usual)}",
                f"{lines:,} lines were printed in the epoch up to step {audit.step:,}; the median "
                f"of earlier ones is {number(usual)}.",
                (Witness("usual epoch", usual, "lines"), Witness("this epoch", lines, "lines")),
                "Read what was printed there.",
            )

    def _bar(self, audit: Audit) -> Iterator[Finding]:
        run = _part(audit, "longest_run")
        length = whole(run, "length") or 0
        if length <= self.widest:
            return
        sign, batches = text(run, "sign") or "?", whole(audit.facts, "batches") or 0
        yield _finding(
            audit,
            "progress bar",
            f"A bar of {length:,} signs on one line",
            f"{sign!r} was printed {length:,} times in a row on one line, over {batches:,} steps. "
            f"No terminal is wider than {self.widest:,}: a progress bar draws against a wrong "
            "total, or one sign for each sample.",
            (Witness("widest terminal", self.widest, "signs"), Witness("bar", length, "signs")),
            "Use verbose=2, and check the total of the progress bar.",
        )

    def _between(self, audit: Audit) -> Iterator[Finding]:
        found = _part(audit, "interruptions")
        lines = whole(found, "lines") or 0
        if lines < self.between:
            return
        yield _finding(
            audit,
            "lines through the progress bar",
            f"{lines:,} lines cut through the progress bar",
            f"While the bar was being drawn, {lines:,} lines were written into it from elsewhere, "
            f"first by {text(found, 'origin') or 'something unknown'}.",
            (
                Witness("expected inside the bar", 0.0, "lines"),
                Witness("written there", lines, "lines"),
            ),
            "Send these lines to a file, or use verbose=2.",
        )


def _part(audit: Audit, key: str) -> Mapping[str, Any]:
    found = audit.facts.get(key)
    return found if isinstance(found, Mapping) else {}


def _headers(audit: Audit) -> Iterator[Finding]:
    epoch, headers = whole(audit.facts, "epoch"), audit.facts.get("headers")
    if epoch is None or not isinstance(headers, (list, tuple)) or not headers:
        return
    if list(headers) == [epoch + 1]:
        return
    shown = ", ".join(str(h) for h in headers)
    yield _finding(
        audit,
        "epoch headers",
        f"Printed epoch {shown}, ran epoch {epoch + 1}",
        f"While epoch {epoch + 1} ran, the headers printed were for epoch {shown}.",
        (Witness("printed", shown, "epoch"), Witness("ran", epoch + 1, "epoch")),
        "Trust the epoch number of this page, not the terminal.",
    )


def _error_lines(audit: Audit) -> Iterator[Finding]:
    rows = maps(audit.facts, "error_lines")
    if not rows:
        return
    count = sum(whole(r, "count") or 1 for r in rows)
    yield _finding(
        audit,
        "error lines",
        f"{count:,} error lines printed, and training went on",
        f"Lines that look like errors appeared, first one that begins with "
        f"{text(rows[0], 'kind') or 'an error'!r}, written by "
        f"{text(rows[0], 'origin') or 'something unknown'}, while the epoch ended as usual.",
        (
            Witness("error lines in an epoch that ends as usual", 0.0, "lines"),
            Witness("error lines printed", count, "lines"),
        ),
        "Check the other alerts of this run; if there are none, the lines may be harmless.",
    )


def _warnings(audit: Audit) -> Iterator[Finding]:
    for row in maps(audit.facts, "warnings"):
        if row.get("user_code") is not False:
            continue
        package, category = text(row, "package") or "a package", text(row, "category") or "Warning"
        yield _finding(
            audit,
            f"{category} of {package}",
            f"{package} warns about its own code",
            f"{package} raised {category}: {text(row, 'text')!r}. The call that it blames is not "
            "in your code.",
            (Witness("warned about", "your code"), Witness("raised by", package)),
            "Nothing to change in your code; an upgrade may help.",
        )


_finding = partial(
    finding_of,
    certainty="Output is counted at the process's own streams; what it means is a guess.",
)


_FACTS = {
    "epoch": 0,
    "lines": 3,
    "bytes": 2000,
    "batches": 10,
    "headers": [1],
    "longest_run": {"sign": "=", "length": 30},
    "interruptions": {"lines": 0, "origin": ""},
    "error_lines": [],
    "warnings": [],
}
