from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity.rules.comparison import maps, measured, merged, number, real, text, two_numbers
from trainsanity.rules.history import Floats, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class GradientMismatch(Rule):
    """The gradient is not the slope of the loss that is shown.

    Compares: the automatic derivative of the loss in one direction with central finite
    differences in the same direction, at several step sizes that agree with each other.

    Why: training then minimises something else than the loss that you watch.

    Try: look for stop_gradient and custom gradients in the loss and in the layer named.

    Source: TensorFlow issues 36694, 44556, 27455. Only advice, since straight-through
    estimators and gradient reversal do this on purpose.
    """

    id = "gradient-mismatch"
    severity = Severity.ADVICE
    needs = ("audit:gradient_check",)

    # Relative spread of the finite differences over their step sizes: beyond it the loss has a kink
    # there (relu, max) and no slope.
    smooth: float = 0.05
    # Relative gap beyond which automatic and numeric slope differ: four times the spread.
    tolerance: float = 0.2
    # Rounding errors of the finite difference below which a slope cannot be told from 0.
    roundings: float = 10.0

    @staticmethod
    def fires_on() -> RunHistory:
        """A custom gradient of zeros."""
        return history(audits=[("gradient_check", 1, {"checks": [_CHECK | {"automatic": 0.0}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """A kink: the finite differences do not agree with each other."""
        kink = _CHECK | {"automatic": 0.5, "numeric": [0.9, 0.7, 0.5]}
        return history(audits=[("gradient_check", 1, {"checks": [_CHECK, kink]})])

    def check(self, run: RunView) -> list[Finding]:
        rows = [
            (audit, row)
            for audit in measured(run, "gradient_check")
            for row in maps(audit.facts, "checks")
        ]
        if rows and not any(_is_broken(r) or self._slope(r) is not None for _, r in rows):
            raise NotTestable("the loss has no clear slope in the directions tried")
        return merged(
            found for audit, row in rows if (found := self._check(audit, row)) is not None
        )

    def _check(self, audit: Audit, row: Mapping[str, Any]) -> Finding | None:
        automatic, slope = real(row, "automatic"), self._slope(row)
        if _is_broken(row):
            return _broken(audit, row)
        if automatic is None or slope is None or not np.isfinite(automatic):
            return None
        largest = max(abs(automatic), abs(slope))
        noise = self.roundings * float(_numbers(row, "roundings").max(initial=0.0))
        if largest <= noise or abs(automatic - slope) <= self.tolerance * largest + noise:
            return None
        return self._finding(audit, row, automatic, slope)

    def _slope(self, row: Mapping[str, Any]) -> float | None:
        """The numeric slope where the step sizes agree on one, or on none above the rounding."""
        numeric, roundings = _numbers(row, "numeric"), _numbers(row, "roundings")
        if len(numeric) < 2 or len(roundings) != len(numeric) or not np.isfinite(numeric).all():
            return None
        spread = float(np.ptp(numeric))
        honest = self.smooth * float(np.abs(numeric).max()) + self.roundings * roundings.max()
        return float(np.median(numeric)) if spread <= honest else None

    def _finding(
        self, audit: Audit, row: Mapping[str, Any], automatic: float, slope: float
    ) -> Finding:
        subject = text(row, "subject") or "all weights"
        a, b = two_numbers(automatic, slope)
        return Finding(
            subject=subject,
            title=f"{subject}: gradient says {a}, the loss changes by {b}",
            message=(
                f"In one direction of {subject} the automatic gradient gives a slope of {a}; the "
                f"loss itself, evaluated on both sides, has {b}. Part of the loss is cut off from "
                "the gradient (stop_gradient), or a custom gradient is not the derivative."
            ),
            witnesses=(
                Witness("slope by the gradient", automatic),
                Witness("slope by finite differences", slope),
            ),
            suggestion=f"Check stop_gradient and custom gradients between {subject} and the loss.",
            first_step=audit.step,
            last_step=audit.step,
            certainty=(
                f"Finite differences at {len(_numbers(row, 'numeric'))} step sizes agree within "
                f"{self.smooth:.0%}; {self.tolerance:.0%} is allowed."
            ),
        )


def _is_broken(row: Mapping[str, Any]) -> bool:
    """A gradient that is not finite, where the loss is."""
    loss = real(row, "loss")
    return bool(row.get("nonfinite")) and loss is not None and bool(np.isfinite(loss))


def _broken(audit: Audit, row: Mapping[str, Any]) -> Finding:
    subject, loss = text(row, "subject") or "all weights", real(row, "loss") or 0.0
    count = float(real(row, "nonfinite") or 0)
    return Finding(
        subject=subject,
        title=f"{subject}: the loss is {number(loss)}, its gradient is not finite",
        message=(
            f"The loss at this input is {number(loss)}, but {number(count)} elements of its "
            f"gradient by {subject} are NaN or infinite: a derivative is taken where it does not "
            "exist (sqrt or log at 0, 0/0 inside where)."
        ),
        witnesses=(Witness("loss", loss), Witness("non-finite gradient elements", count)),
        suggestion="Keep the argument away from 0 before the operation, not behind it.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="A count; none is allowed.",
    )


def _numbers(row: Mapping[str, Any], key: str) -> Floats:
    value = row.get(key)
    usable: Sequence[Any] = value if isinstance(value, (list, tuple)) else ()
    return np.array([v for v in usable if isinstance(v, (int, float))], np.float64)


_CHECK: dict[str, Any] = {
    "subject": "dense",
    "automatic": 0.9,
    "numeric": [0.91, 0.902, 0.9],
    "steps": [1e-2, 1e-3, 1e-4],
    "roundings": [1e-5, 1e-4, 1e-3],
    "dtype": "float32",
    "nonfinite": 0,
    "loss": 1.2,
}
