"""The way of a mask through the layers, drawn as rails beside the list of layers.

Each layer is one row; a rail is the tensor between a layer and whoever reads it. Where a mask
travels with the tensor the rail is solid, else dashed: so the place where a mask ends is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainsanity_server.pages.formats import count
from trainsanity_server.pages.layer_facts import layers_of, shape_text

LANE, ROW, LEFT = 18, 52, 14  # pixels: between rails, height of a row, first rail
MIDDLE = ROW / 2
QUIET_STRETCH = 3  # layers


@dataclass(frozen=True)
class Rail:
    """A stretch of a rail inside one row, as an SVG path."""

    path: str
    masked: bool


@dataclass
class LayerRow:
    """A layer as the picture shows it.

    Attributes:
        fate: what happens to the mask here: "made", "lost" (it should not have ended), "ended"
            (as it should, or nobody knows), "carried", "none".
        number: of the row, from above; one layer may run in several.
        coverage_in, coverage_out: share of positions that the mask calls real; None: no mask.
    """

    name: str
    kind: str
    site: str
    reason: str
    shape: str
    fate: str
    legal: bool | None
    coverage_in: float | None
    coverage_out: float | None
    inputs: Sequence[str] = ()
    number: int = 0
    x: float = LEFT
    rails: list[Rail] = field(default_factory=list)


@dataclass(frozen=True)
class OutputLine:
    """What arrives at an output of the model."""

    name: str
    coverage: float | None
    aligned: bool


@dataclass(frozen=True)
class MaskPicture:
    rows: Sequence[LayerRow]
    outputs: Sequence[OutputLine]
    width: int  # pixels, of the rails
    not_testable: str

    @property
    def has_mask(self) -> bool:
        return any(row.fate != "none" for row in self.rows)

    @property
    def lost(self) -> Sequence[LayerRow]:
        return [row for row in self.rows if row.fate == "lost"]


def mask_picture(facts: Mapping[str, Any]) -> MaskPicture:
    """From the audit `mask_flow`; whatever else a client may have sent there is left out."""
    rows = _without_quiet_stretches([_row(layer) for layer in layers_of(facts)])
    lanes = _lay_rails(rows)
    return MaskPicture(
        rows=rows,
        outputs=_outputs(facts.get("outputs")),
        width=LEFT * 2 + max(0, lanes - 1) * LANE,
        not_testable=_text(facts.get("not_testable")),
    )


def _row(layer: Mapping[str, Any]) -> LayerRow:
    legal = layer.get("legal")
    shape = layer.get("output_shape")
    return LayerRow(
        name=_text(layer.get("name")),
        kind=_text(layer.get("class")),
        site=_text(layer.get("site")),
        reason=_text(layer.get("reason")),
        shape=shape_text(shape),
        fate=_fate(layer),
        legal=legal if isinstance(legal, bool) else None,
        coverage_in=_share(layer.get("mask_in")),
        coverage_out=_share(layer.get("mask_out")),
        inputs=_texts(layer.get("inputs")),
    )


def _fate(layer: Mapping[str, Any]) -> str:
    if layer.get("ended") is True:
        return "lost" if layer.get("legal") is False else "ended"
    if layer.get("produced") is True:
        return "made"
    return "none" if layer.get("mask_out") is None else "carried"


def _outputs(outputs: Any) -> list[OutputLine]:
    if not isinstance(outputs, Mapping):
        return []
    return [
        OutputLine(
            name=str(name),
            coverage=_share(facts.get("mask")),
            aligned=facts.get("aligned") is not False,
        )
        for name, facts in outputs.items()
        if isinstance(facts, Mapping)
    ]


def _without_quiet_stretches(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Three or more layers in a row without any mask, such as steps of a cell, become one line."""
    shown: list[LayerRow] = []
    stands_for: dict[str, str] = {}
    for is_quiet, stretch in itertools.groupby(rows, lambda row: row.fate == "none"):
        members = list(stretch)
        if is_quiet and len(members) >= QUIET_STRETCH:
            line = _one_line(members)
            stands_for |= {row.name: line.name for row in members}
            members = [line]
        else:
            stands_for |= {row.name: row.name for row in members}
        shown += members
    for row in shown:
        row.inputs = [stands_for.get(name, name) for name in row.inputs if name in stands_for]
    return shown


def _one_line(rows: Sequence[LayerRow]) -> LayerRow:
    names = list(dict.fromkeys(row.name for row in rows))
    own = set(names)
    return LayerRow(
        name=" … ".join(dict.fromkeys((names[0], names[-1]))),
        kind=f"{count(len(rows), 'call')} of {count(len(names), 'layer')}, none with a mask",
        site="",
        reason="",
        shape="",
        fate="none",
        legal=None,
        coverage_in=None,
        coverage_out=None,
        inputs=[name for row in rows for name in row.inputs if name not in own],
    )


def _lay_rails(rows: Sequence[LayerRow]) -> int:
    """Gives every row its place and the rails that cross it; returns how many rails lie abreast."""
    last_reader = _last_readers(rows)
    lanes: list[int | None] = []  # the producer's row, for each rail in use
    most = 1
    for number, row in enumerate(rows):
        sources = _sources(rows, number)
        above = list(lanes)
        ending = [lane for lane, source in enumerate(lanes) if _ends(source, last_reader, number)]
        for lane in ending:
            lanes[lane] = None
        own = ending[0] if ending else _free(lanes)
        if own == len(lanes):
            lanes.append(None)
        lanes[own] = number
        row.number, row.x = number, _x(own)
        row.rails = [
            *_passing(rows, above, lanes),
            *_arriving(rows, above, sources, own),
        ]
        if number in last_reader:
            row.rails.append(_leaving(row, own))
        else:
            lanes[own] = None
        most = max(most, len(lanes))
    return most


def _last_readers(rows: Sequence[LayerRow]) -> dict[int, int]:
    """The last row that reads each row."""
    found: dict[int, int] = {}
    for number in range(len(rows)):
        for source in _sources(rows, number):
            found[source] = number
    return found


def _sources(rows: Sequence[LayerRow], number: int) -> list[int]:
    """Rows above that this one reads; a layer that is used twice is read where it ran last."""
    above = {row.name: i for i, row in enumerate(rows[:number])}
    return sorted({above[name] for name in rows[number].inputs if name in above})


def _ends(source: int | None, last_reader: Mapping[int, int], number: int) -> bool:
    return source is not None and last_reader.get(source) == number


def _free(lanes: Sequence[int | None]) -> int:
    return next((lane for lane, source in enumerate(lanes) if source is None), len(lanes))


def _passing(
    rows: Sequence[LayerRow], above: Sequence[int | None], below: Sequence[int | None]
) -> list[Rail]:
    return [
        Rail(f"M{_x(lane):g} 0V{ROW}", _is_masked(rows[source]))
        for lane, source in enumerate(above)
        if source is not None and below[lane] == source
    ]


def _arriving(
    rows: Sequence[LayerRow], above: Sequence[int | None], sources: Sequence[int], own: int
) -> list[Rail]:
    to = _x(own)
    rails = []
    for lane, source in enumerate(above):
        if source is None or source not in sources:
            continue
        at = _x(lane)
        bend = f"M{at:g} 0C{at:g} {MIDDLE:g} {to:g} {MIDDLE / 3:g} {to:g} {MIDDLE:g}"
        path = f"M{at:g} 0V{MIDDLE:g}" if lane == own else bend
        rails.append(Rail(path, _is_masked(rows[source])))
    return rails


def _leaving(row: LayerRow, own: int) -> Rail:
    return Rail(f"M{_x(own):g} {MIDDLE:g}V{ROW}", _is_masked(row))


def _is_masked(row: LayerRow) -> bool:
    return row.coverage_out is not None


def _x(lane: int) -> float:
    return LEFT + lane * LANE


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _share(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return min(1.0, max(0.0, float(value))) if is_number and value == value else None
