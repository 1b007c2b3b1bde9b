"""Two tensors that should be equal: how far apart honest arithmetic may leave them.

Two ways through the same network (eager and XLA, before and after a reload on another kernel) add
the same terms in another order. The bound here is a model of that, with the measured unrest of the
very network on top, so that an ill-conditioned model is judged by its own condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    HALF,
    number,
    real,
    text,
    times_in_words,
    unit_roundoff,
    whole,
)

# Roundings between the ends of a network, in units of the unit roundoff: 64 layers, each a sum of
# 2^12 products that errs by up to 4·√(2^12) roundings (Higham and Mary 2019), all to one side.
NETWORK_ROUNDINGS = 64 * 4 * 64
# Matrix kernels in half precision usually accumulate in float32, so only the results of 64 layers
# are rounded.
HALF_ROUNDINGS = 64
# Below it numbers lie evenly: a rounding errs by a share of this, not of the number. IEEE 754.
SMALLEST_NORMAL = {"float16": 2.0**-14, "float64": 2.0**-1022}
# Two more runs may lie this much further apart than the two whose difference was measured.
NOISE_FACTOR = 8
# A reordered network errs like many perturbed inputs: one for each of 64 layers.
SENSITIVITY_FACTOR = 64
# A way that disagrees with itself by more than this share of its outputs cannot testify.
RESTLESS = 0.01


@dataclass(frozen=True)
class Difference:
    """The `difference` of docs/evidence.md.

    Attributes:
        largest: largest absolute difference over elements finite in both; infinite where already
            the shapes differ.
        scale: largest absolute finite value in either.
        noise: as `largest`, between two runs of the first way; None where not measured.
        sensitivity: as `largest`, for inputs changed by one rounding; None where not measured.
        nonfinite: NaN and infinities in the first and in the second.
    """

    largest: float
    scale: float
    elements: int = 1
    dtype: str = "float32"
    noise: float | None = None
    sensitivity: float | None = None
    nonfinite: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, facts: Mapping[str, Any], key: str = "difference") -> Difference | None:
        """Reads a difference; None where it is missing or incomplete."""
        found = facts.get(key)
        if not isinstance(found, Mapping):
            return None
        largest, scale = real(found, "largest"), real(found, "scale")
        if largest is None or scale is None:
            return None
        counts = found.get("nonfinite")
        return cls(
            largest=largest,
            scale=scale,
            elements=whole(found, "elements") or 1,
            dtype=text(found, "dtype") or "float32",
            noise=real(found, "noise"),
            sensitivity=real(found, "sensitivity"),
            nonfinite=_pair(counts),
        )

    @property
    def is_float(self) -> bool:
        return "float" in self.dtype

    @property
    def tolerance(self) -> float:
        """Largest difference that rounding explains, in the unit of the tensors."""
        half = self.dtype in HALF
        roundings = HALF_ROUNDINGS if half else NETWORK_ROUNDINGS
        return (
            roundings * unit_roundoff(self.dtype) * max(self.scale, self._smallest_normal)
            + NOISE_FACTOR * (self.noise or 0.0)
            + SENSITIVITY_FACTOR * (self.sensitivity or 0.0)
        )

    @property
    def _smallest_normal(self) -> float:
        return SMALLEST_NORMAL.get(self.dtype, 2.0**-126)  # float32 and bfloat16

    @property
    def disagrees(self) -> bool:
        """Whether rounding cannot explain the difference. NaN in one alone is a difference."""
        return self.largest > self.tolerance or (self.nonfinite[0] > 0) != (self.nonfinite[1] > 0)

    @property
    def is_restless(self) -> bool:
        """Whether the first way does not even agree with itself, or may not for all we know."""
        return self.noise is None or self.noise > RESTLESS * self.scale

    @property
    def not_testable(self) -> str | None:
        """Why the two say nothing about each other; None where they do."""
        if math.isinf(self.largest):
            return None  # other shapes: no rounding explains that
        if not self.is_float:
            return f"outputs of dtype {self.dtype} may flip by a rounding"
        if self.noise is None:
            return "the first way was not run twice, so its own noise is unknown"
        if self.is_restless:
            return (
                "the first way does not agree with itself: two runs differ by "
                f"{number(self.noise)} at a scale of {number(self.scale)}"
            )
        return None

    def in_words(self) -> str:
        """`up to 0.4 apart`, `of other shapes`, or what is finite in one alone."""
        if math.isinf(self.largest):
            return "of other shapes"
        if self.largest > self.tolerance or self.nonfinite == (0, 0):
            return f"up to {number(self.largest)} apart"
        return f"{self.nonfinite[0]:,} NaN or infinite elements against {self.nonfinite[1]:,}"

    def certainty(self) -> str:
        """The tolerance and by how much it was exceeded, in words."""
        if math.isinf(self.largest):
            return "Shapes are compared exactly."
        if self.largest <= self.tolerance:
            return f"Non-finite elements: {self.nonfinite[0]:,} against {self.nonfinite[1]:,}."
        times = self.largest / self.tolerance if self.tolerance > 0 else math.inf
        return (
            f"The largest difference is {number(self.largest)} at values of up to "
            f"{number(self.scale)}, {times_in_words(times)} the "
            f"{number(self.tolerance, digits=2)} allowed for {self.dtype} rounding."
        )


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    return 0, 0
