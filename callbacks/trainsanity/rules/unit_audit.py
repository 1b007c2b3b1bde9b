"""The `units` audit: layers that look bad twice in a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainsanity.rules.comparison import maps, measured, text
from trainsanity.rules.history import RunView
from trainsanity.wire import Audit

Row = Mapping[str, Any]


def lasting(run: RunView, is_bad: Callable[[Row], bool]) -> Iterator[tuple[Audit, Row]]:
    """New rows of hidden layers that are bad now and were in the audit before.

    Raises:
        NotTestable: the run carries no such audit, or it could not be made.
    """
    new = measured(run, "units")
    every = [a for a in run.audits("units") if not text(a.facts, "not_testable")]
    for before, audit in itertools.pairwise(every):
        if audit not in new:
            continue
        earlier = {text(r, "name") for r in maps(before.facts, "layers") if is_bad(r)}
        for row in maps(audit.facts, "layers"):
            if not row.get("output") and text(row, "name") in earlier and is_bad(row):
                yield audit, row
