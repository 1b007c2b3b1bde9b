"""Totals of totals: the rows above the chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Row, func, insert, select
from sqlalchemy.orm import Session

from trainsanity_server.storage.buckets import Buckets, joined, merged
from trainsanity_server.storage.chunk import DamagedError, pack_header, unpack_header
from trainsanity_server.storage.cover import CHUNK_ROWS, FAN_OUT
from trainsanity_server.storage.models import ChunkRow


def build_levels(session: Session, run_id: str, group: int, signals: int) -> None:
    """Adds the rows of each level for which the level below has become complete."""
    level = 0
    while rows := _uncovered(session, run_id, group, level):
        level += 1
        new = [
            _row(run_id, group, level, signals, rows[i : i + FAN_OUT])
            for i in range(0, len(rows) // FAN_OUT * FAN_OUT, FAN_OUT)
        ]
        if not new:
            return
        session.execute(insert(ChunkRow.__table__), new)


def _uncovered(session: Session, run_id: str, group: int, level: int) -> list[Row[Any]]:
    """Complete rows of a level that no row of the next one covers."""
    own = (ChunkRow.run_id == run_id, ChunkRow.group == group)
    covered = session.scalar(
        select(func.max(ChunkRow.last_step)).where(*own, ChunkRow.level == level + 1)
    )
    query = select(ChunkRow.first_step, ChunkRow.last_step, ChunkRow.rows, ChunkRow.header).where(
        *own, ChunkRow.level == level, ChunkRow.first_step > (-1 if covered is None else covered)
    )
    rows: list[Row[Any]] = [*session.execute(query.order_by(ChunkRow.first_step))]
    is_growing = rows and level == 0 and rows[-1].rows < CHUNK_ROWS
    return rows[:-1] if is_growing else rows


def _row(
    run_id: str, group: int, level: int, signals: int, below: Sequence[Row[Any]]
) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "group_number": group,
        "level": level,
        "first_step": below[0].first_step,
        "last_step": below[-1].last_step,
        "rows": sum(row.rows for row in below),
        "header": pack_header(joined([_total(row, signals) for row in below])),
        "data": None,
    }


def _total(row: Row[Any], signals: int) -> Buckets:
    try:
        return merged(unpack_header(row.header, range(signals)), np.zeros(1, np.int64))
    except DamagedError:
        return _unknown(row, signals)


def _unknown(row: Row[Any], signals: int) -> Buckets:
    """Says where a damaged row lies, and nothing of its values."""
    nothing = np.full((signals, 1), np.nan)
    zero = np.zeros((signals, 1), np.int64)
    return Buckets(
        first_step=np.array([row.first_step]),
        last_step=np.array([row.last_step]),
        rows=np.array([row.rows]),
        min=nothing,
        max=nothing,
        sum=np.zeros((signals, 1)),
        first=nothing,
        last=nothing,
        nan=zero + row.rows,
        inf=zero,
    )
