"""Signals and their curves."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Query, Response
from numpy.typing import NDArray

from trainsanity.wire import MAX_STEP
from trainsanity_server.api import shapes
from trainsanity_server.parts import PartsOf
from trainsanity_server.services.signals import MAX_POINTS
from trainsanity_server.storage.points import Series

router = APIRouter(prefix="/runs/{run_id}/signals", tags=["signals"], responses=shapes.PROBLEMS)

Step = Annotated[int, Query(ge=0, le=MAX_STEP)]


@router.get("", response_model=shapes.SignalList)
def list_signals(parts: PartsOf, run_id: str) -> Any:
    return {"signals": parts.signals.known(run_id)}


@router.get("/data", response_model=shapes.SignalData)
def get_signal_data(
    parts: PartsOf,
    run_id: str,
    name: Annotated[list[str], Query()],
    first_step: Step = 0,
    last_step: Step = MAX_STEP,
    points: Annotated[int, Query(ge=1, le=MAX_POINTS)] = 1000,
) -> Any:
    """Columns `step, value`, or summaries where a signal has more than `points` samples.

    A summary stands for `count` samples from `step` to `last_step`, `nonfinite` of which are NaN or
    infinite; `min`, `max` and `mean` are over the finite ones. There are `points / 2` summaries or
    fewer, as each draws two numbers; the least and the greatest are always among them. NaN and
    infinities are the texts "NaN", "Infinity" and "-Infinity". Samples that were float32 in the
    training process are written with as many digits as float32 has.
    """
    overview = parts.signals.data(
        run_id, name, first_step=first_step, last_step=last_step, points=points
    )
    answer = {"signals": [_columns(s) for s in overview.series], "damage": list(overview.damage)}
    # Not by way of the model: it would look at each of the numbers.
    return Response(
        orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )


def _columns(series: Series) -> dict[str, Any]:
    head = {"name": series.name, "samples": series.count, "thinned": series.buckets is not None}
    if series.buckets is None:
        return {**head, "step": series.steps, "value": _numbers(series.values)}
    buckets = series.buckets
    return {
        **head,
        "step": buckets.first_step,
        "last_step": buckets.last_step,
        "min": _numbers(buckets.min[0]),
        "max": _numbers(buckets.max[0]),
        "mean": _numbers(buckets.mean[0].astype(np.float32)),
        "first": _numbers(buckets.first[0]),
        "last": _numbers(buckets.last[0]),
        "count": buckets.rows,
        "nonfinite": buckets.nan[0] + buckets.inf[0],
    }


def _numbers(values: NDArray[np.floating[Any]] | None) -> Any:
    """An array that JSON can carry, in the fewest digits that give the same number back."""
    if values is None:
        return []
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    is_narrow = bool(((narrow == values) | np.isnan(values)).all())
    column = np.ascontiguousarray(narrow if is_narrow else values)
    return column if np.isfinite(column).all() else [shapes.plain(v) for v in column.tolist()]
