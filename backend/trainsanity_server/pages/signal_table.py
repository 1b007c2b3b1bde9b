"""The samples behind a chart as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from trainsanity_server.pages.formats import figure
from trainsanity_server.pages.render import render, wants_part
from trainsanity_server.parts import PartsOf
from trainsanity_server.services.signals import MAX_NUMBERS, MAX_POINTS
from trainsanity_server.storage.points import Series

router = APIRouter(prefix="/runs/{run_id}", include_in_schema=False)

LINES = 400  # of samples; of stretches half as many


@dataclass(frozen=True)
class Line:
    steps: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Attributes:
    is_thinned: a line stands for a stretch of steps.
    """

    names: Sequence[str]
    rows: Sequence[Line]
    is_thinned: bool

    @property
    def most_points(self) -> int:
        """As many of each signal as one answer in JSON may hold."""
        return min(MAX_POINTS, MAX_NUMBERS // len(self.names)) if self.names else MAX_POINTS


@router.get("/table", name="page_table")
def signal_table(
    parts: PartsOf, request: Request, run_id: str, name: Annotated[list[str], Query()]
) -> Response:
    run = parts.runs.get(run_id)
    series = parts.signals.data(run_id, name, points=LINES).series
    template = "partials/table.html" if wants_part(request) else "pages/table.html"
    return render(request, template, here="/", run=run, table=table(series))


def table(series: Sequence[Series]) -> Table:
    """One line for each step, or stretch, at which any of the signals has a sample."""
    columns = [_cells(one) for one in series]
    first_steps = sorted({step for cells in columns for step in cells})
    rows = [
        Line(
            next(cells[step][0] for cells in columns if step in cells),
            [cells[step][1] if step in cells else "" for cells in columns],
        )
        for step in first_steps
    ]
    return Table([one.name for one in series], rows, any(one.buckets for one in series))


def _cells(series: Series) -> dict[int, tuple[str, str]]:
    """By first step: the steps of the line, and the value or the range of values."""
    if series.steps is not None and series.values is not None:
        samples = zip(series.steps.tolist(), series.values.tolist(), strict=True)
        return {step: (f"{step:,}", figure(value)) for step, value in samples}
    if series.buckets is None:
        return {}
    buckets = series.buckets
    lines = zip(
        buckets.first_step.tolist(),
        buckets.last_step.tolist(),
        buckets.min[0].tolist(),
        buckets.max[0].tolist(),
        strict=True,
    )
    return {
        first: (f"{first:,} to {last:,}", f"{figure(low)} to {figure(high)}")
        for first, last, low, high in lines
    }
