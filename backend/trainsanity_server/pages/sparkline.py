"""A curve small enough for a line of a list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainsanity_server.pages.formats import figure

WIDTH, HEIGHT, MARGIN = 132, 28, 3  # pixels


@dataclass(frozen=True)
class Sparkline:
    """An SVG path, its last point, and the same in words.

    Attributes:
        path: stretches of finite values; NaN and infinities leave gaps.
        x, y: where the curve ends; None where the last value is not finite.
    """

    path: str
    last: str
    text: str
    x: float | None
    y: float | None


def sparkline(facts: Mapping[str, Any] | None) -> Sparkline | None:
    """From what `services.sparkline` made; None where there is nothing to draw."""
    if not facts:
        return None
    values = [_number(value) for value in facts.get("values") or ()]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    name = str(facts.get("signal", ""))
    points = _points(values, min(finite), max(finite))
    # The curve is of means; the number beside it is the newest sample itself.
    last = figure(facts.get("last", values[-1]))
    end = points[-1]
    return Sparkline(
        path=_path(points),
        last=last,
        text=f"{name}: from {figure(finite[0])} to {last}, lowest {figure(min(finite))}",
        x=end[0] if end else None,
        y=end[1] if end else None,
    )


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _points(values: Sequence[float], low: float, high: float) -> list[tuple[float, float] | None]:
    across = (WIDTH - 2 * MARGIN) / max(1, len(values) - 1)
    # Halves: the distance between the largest floats is no float.
    half = (high / 2 - low / 2) or 1.0
    tall = HEIGHT - 2 * MARGIN
    return [
        (
            round(MARGIN + i * across, 1),
            round(HEIGHT - MARGIN - (value / 2 - low / 2) / half * tall, 1),
        )
        if math.isfinite(value)
        else None
        for i, value in enumerate(values)
    ]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    parts = []
    pen_down = False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if pen_down else 'M'}{point[0]:g} {point[1]:g}")
        pen_down = point is not None
    # A single point would be an empty stroke; a line of no length draws its round cap.
    return "".join(parts) if len(parts) > 1 else parts[0] + "h0"
