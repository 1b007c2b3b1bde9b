"""One row for a batch that several replicas have shared: what each has measured, put together.

Each replica measures its own part of the batch. Sums, extremes and means over rows of data can be
put together exactly; what cannot is left out, and said to be not testable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from trainsanity.tape import NOTHING

Columns = Mapping[str, Any]
SIZE = "batch/size"

# Ends of column names -> how their values on the replicas make one.
_WAYS: dict[str, tuple[str, ...]] = {
    "sum": (
        SIZE,
        "/elements",
        "/expected_elements",
        "/nonfinite",
        ":n",
        ":d",
        "_fingerprint:rows",
    ),
    "min": ("/min", "_min"),
    "max": ("/max", "_max", "/classes", "/target_padding_most"),
    "rows": (
        "_coverage",
        "/mean",
        "_mean",
        "/border_zero",
        "/out_of_range",
        "/not_whole",
        "loss/added",
    ),
    "alike": ("loss/differentiated",),
}


def way_of(name: str) -> str | None:
    """How values of this column make one: their sum, least, largest, mean weighted by rows, mean
    where all replicas have as many rows; None where they do not.
    """
    if name.startswith("_loss:") and not name.endswith((":n", ":d")):
        return "rows"
    return next((way for way, ends in _WAYS.items() if name.endswith(ends)), None)


def left_out(names: list[str]) -> list[str]:
    """Signals that cannot be put together; what is reported is known at the end of an epoch."""
    return [
        name
        for name in names
        if way_of(name) is None and not name.startswith("_") and not name.endswith("/reported")
    ]


def together(parts: list[Columns]) -> dict[str, Any]:
    """One row of the rows of all replicas; scalar tensors by column name."""
    common = [name for name in parts[0] if all(name in part for part in parts)]
    if SIZE not in common:
        return {}
    sizes = _stacked(parts, SIZE)
    row = {}
    for name in common:
        way = way_of(name)
        if way is not None:
            row[name] = _WAY[way](_stacked(parts, name), sizes)
    return row


def _stacked(parts: list[Columns], name: str) -> Any:
    return ops.stack([ops.reshape(ops.cast(part[name], "float32"), ()) for part in parts])


def _sum(values: Any, sizes: Any) -> Any:
    return _if_known(values, sizes, ops.sum(values))


def _rows(values: Any, sizes: Any) -> Any:
    # What a replica without rows has measured may be NaN.
    weighted = ops.where(sizes > 0, values * sizes, ops.zeros_like(values))
    return _if_known(values, sizes, ops.divide_no_nan(ops.sum(weighted), ops.sum(sizes)))


def _alike(values: Any, sizes: Any) -> Any:
    same = ops.all(sizes == sizes[0])
    return _if_known(values, sizes, ops.where(same, ops.mean(values), NOTHING))


def _extreme(choose: Callable[[Any], Any], neutral: float) -> Callable[[Any, Any], Any]:
    def extreme(values: Any, sizes: Any) -> Any:
        known = ops.logical_and(values != NOTHING, sizes > 0)
        found = choose(ops.where(known, values, ops.full_like(values, neutral)))
        return ops.where(ops.any(known), found, NOTHING)

    return extreme


def _if_known(values: Any, sizes: Any, result: Any) -> Any:
    unknown = ops.any(ops.logical_and(values == NOTHING, sizes > 0))
    return ops.where(unknown, NOTHING, result)


_WAY: dict[str, Callable[[Any, Any], Any]] = {
    "sum": _sum,
    "rows": _rows,
    "alike": _alike,
    "min": _extreme(ops.min, float("inf")),
    "max": _extreme(ops.max, float("-inf")),
}
