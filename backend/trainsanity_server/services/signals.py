"""Questions about signals: which there are, and their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainsanity.wire import MAX_STEP
from trainsanity_server.errors import MalformedError
from trainsanity_server.services.runs import checked_id, found
from trainsanity_server.storage import evidence
from trainsanity_server.storage import runs as run_rows
from trainsanity_server.storage.buckets import from_rows
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.models import SignalRow
from trainsanity_server.storage.points import Overview, PointStore, Series

MAX_NAMES = 64
MAX_POINTS = 20_000  # of one signal
MAX_NUMBERS = 200_000  # of all signals of one answer


@dataclass(frozen=True)
class Signal:
    """A signal over the whole run; `min` and `max` are over finite values, or NaN."""

    name: str
    unit: str
    label: str
    first_step: int
    last_step: int
    count: int
    nonfinite: int
    last: float
    min: float
    max: float


class Signals:
    """Questions about the signals of a run."""

    def __init__(self, database: Database, points: PointStore) -> None:
        self._database = database
        self._points = points

    def known(self, run_id: str) -> list[Signal]:
        """All signals of a run that have samples, sorted by name."""
        with self._database.read() as session:
            found(run_rows.get(session, checked_id(run_id)), run_id)
            declared = {row.name: row for row in evidence.signals(session, run_id)}
        overview = self._look(run_id, None, 0, MAX_STEP, 2)
        return [
            _signal(series, declared.get(series.name) or SignalRow(unit="", label=""))
            for series in sorted(overview.series, key=lambda series: series.name)
        ]

    def data(
        self,
        run_id: str,
        names: Sequence[str],
        *,
        first_step: int = 0,
        last_step: int = MAX_STEP,
        points: int = 1000,
    ) -> Overview:
        """Samples, or summaries of them where there are more than `points`; loses no extreme.

        Raises:
            NotFoundError: there is no such run. MalformedError: too much is asked for at once.
        """
        _check(names, first_step, last_step, points)
        with self._database.read() as session:
            found(run_rows.get(session, checked_id(run_id)), run_id)
        return self._look(run_id, list(dict.fromkeys(names)), first_step, last_step, points)

    def _look(
        self, run_id: str, names: Sequence[str] | None, first_step: int, last_step: int, points: int
    ) -> Overview:
        overview = self._points.overview(run_id, names, first_step, last_step, points)
        if overview.damage:
            # From now on also those see it who look at other parts of the run.
            self._database.write(lambda s: run_rows.note_damage(s, run_id, overview.damage))
        return overview


def _check(names: Sequence[str], first_step: int, last_step: int, points: int) -> None:
    if not 1 <= len(names) <= MAX_NAMES:
        raise MalformedError(f"name must be given 1 to {MAX_NAMES} times. Received: {len(names)}")
    if not 1 <= points <= MAX_POINTS:
        raise MalformedError(f"points must be within 1..{MAX_POINTS}. Received: {points}")
    if len(names) * points > MAX_NUMBERS:
        raise MalformedError(
            f"names × points must be {MAX_NUMBERS} at most. Received: {len(names)} × {points}"
        )
    if not 0 <= first_step <= last_step <= MAX_STEP:
        raise MalformedError(
            f"steps must be 0 <= first_step <= last_step <= {MAX_STEP}. "
            f"Received: first_step={first_step}, last_step={last_step}"
        )


def _signal(series: Series, said: SignalRow) -> Signal:
    total = series.buckets
    if series.steps is not None and series.values is not None:
        total = from_rows(series.steps, series.values[None, :], series.count)
    assert total is not None  # one of both is there
    return Signal(
        name=series.name,
        unit=said.unit,
        label=said.label,
        first_step=int(total.first_step[0]),
        last_step=int(total.last_step.max()),
        count=series.count,
        nonfinite=int((total.nan + total.inf).sum()),
        last=float(total.last[0, -1]),
        min=float(total.min[0, 0]),
        max=float(total.max[0, 0]),
    )
