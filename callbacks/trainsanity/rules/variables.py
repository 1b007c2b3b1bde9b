"""The `weights` audit, read as variables grouped by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, real, text, whole

MOST_SUBJECTS = 5  # alerts of one kind; more layers than that share one


@dataclass(frozen=True)
class Variable:
    """One weight over one epoch; None where it was not measured."""

    path: str
    layer: str
    size: int | None
    trainable: bool
    trainable_begin: bool
    by_nature: bool
    in_optimizer: bool
    connected: bool | None
    moved: float | None
    norm: float | None
    gradient_largest: float | None

    @property
    def frozen(self) -> bool:
        """A weight made to be trained that stood still by its flag during the whole epoch."""
        return self.by_nature and not self.trainable and not self.trainable_begin

    @property
    def training(self) -> bool:
        """Flagged trainable during the whole epoch."""
        return self.by_nature and self.trainable and self.trainable_begin


def variables(facts: Mapping[str, Any]) -> list[Variable]:
    """The variables of a `weights` audit."""
    return [_variable(row) for row in maps(facts, "variables")]


def _variable(row: Mapping[str, Any]) -> Variable:
    path = text(row, "path") or "?"
    trainable = bool(row.get("trainable"))
    connected = row.get("gradient")
    return Variable(
        path=path,
        layer=text(row, "layer") or path.rpartition("/")[0] or path,
        size=whole(row, "size"),
        trainable=trainable,
        trainable_begin=bool(row.get("trainable_begin", trainable)),
        by_nature=bool(row.get("by_nature", True)),
        in_optimizer=bool(row.get("in_optimizer")),
        connected=connected if isinstance(connected, bool) else None,
        moved=real(row, "moved"),
        norm=real(row, "norm"),
        gradient_largest=real(row, "gradient_largest"),
    )


def by_subject(found: Iterable[Variable]) -> dict[str, list[Variable]]:
    """Variables by layer, or all under `model` where that would be a storm of alerts."""
    layers: dict[str, list[Variable]] = {}
    for variable in found:
        layers.setdefault(variable.layer, []).append(variable)
    if len(layers) <= MOST_SUBJECTS:
        return layers
    return {"model": [v for group in layers.values() for v in group]}


def named(found: list[Variable]) -> str:
    """`dense/kernel, dense/bias`, or the first three and how many more."""
    names = [v.path for v in found]
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3:,} more"
