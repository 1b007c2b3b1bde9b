from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    maps,
    measured,
    merged,
    number,
    real,
    text,
    two_numbers,
    whole,
)
from trainsanity.rules.difference import Difference
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class RoundtripBehaviour(Rule):
    """The model behaves differently after it was saved and loaded.

    Compares: outputs and metrics on the same captured rows, before saving and after loading.

    Why: the model that you deploy is not the one that you evaluated.

    Try: keep weights in add_weight, report every argument in get_config, and name metrics and
    losses so that they resolve to the same function.

    Source: TensorFlow issues 42459, 41958, 42890, 43777, 43518 ('accuracy' resolved to another
    metric), 43230 (state lost), 40981 (config changed).
    """

    id = "roundtrip-behaviour"
    severity = Severity.CRITICAL
    needs = ("audit:roundtrip",)

    # Relative, of a metric on bit-equal outputs: one float32 mean taken twice.
    rounding: float = 1e-5
    # Samples that may flip to another class where outputs agree but for rounding.
    flips: int = 2

    @staticmethod
    def fires_on() -> RunHistory:
        """Outputs as before, but 'accuracy' now means something else."""
        metric = {"key": "accuracy", "before": 0.91, "after": 0.1, "samples": 64}
        return history(audits=[("roundtrip", 90, {"outputs": [_OUTPUT], "metrics": [metric]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """Rounding on another kernel, and one sample that flips."""
        moved = _OUTPUT | {"difference": _OUTPUT["difference"] | {"largest": 1e-6}}
        metric = {"key": "accuracy", "before": 0.90625, "after": 0.921875, "samples": 64}
        return history(audits=[("roundtrip", 90, {"outputs": [moved], "metrics": [metric]})])

    def check(self, run: RunView) -> list[Finding]:
        audits = measured(run, "roundtrip")
        for audit in audits:
            reasons = [d.not_testable for _, d in _outputs(audit)]
            if reasons and all(reasons):
                raise NotTestable(reasons[0] or "")
        return merged(found for audit in audits for found in self._check(audit))

    def _check(self, audit: Audit) -> Iterator[Finding]:
        outputs = _outputs(audit)
        for name, difference in outputs:
            if difference.not_testable is None and difference.disagrees:
                yield _output_changed(audit, name, difference)
        if any(d.is_restless for _, d in outputs):
            return
        exact = bool(outputs) and all(d.largest == 0 for _, d in outputs)
        for row in maps(audit.facts, "metrics"):
            before, after = real(row, "before"), real(row, "after")
            if before is None or after is None:
                continue
            allowed = self.rounding * max(abs(before), abs(after), 1.0)
            if not exact:
                allowed += self.flips / max(1, whole(row, "samples") or 1)
                allowed += 1e3 * self.rounding * max(abs(before), abs(after))
            if abs(before - after) > allowed:
                yield _metric_changed(audit, row, before, after, allowed, outputs)


def _outputs(audit: Audit) -> list[tuple[str, Difference]]:
    rows = maps(audit.facts, "outputs")
    found = [(text(r, "name") or "output", Difference.of(r)) for r in rows]
    return [(name, difference) for name, difference in found if difference is not None]


def _output_changed(audit: Audit, name: str, difference: Difference) -> Finding:
    return Finding(
        subject=f"output {name}",
        title=f"Output {name} differs after save and load: {difference.in_words()}",
        message=(
            f"Saved as {text(audit.facts, 'format') or 'a file'} and loaded again, the model gives "
            f"other values for {name} on the same input: {difference.in_words()}, "
            f"at values of up to {number(difference.scale)}. State that is not saved (a raw "
            "variable, a layer in a Lambda) or an argument missing from get_config gets lost."
        ),
        witnesses=(
            Witness("largest output before", difference.scale),
            Witness("largest difference after", difference.largest),
        ),
        suggestion="See the alerts on untracked weights and on the structure after reload.",
        first_step=audit.step,
        last_step=audit.step,
        certainty=difference.certainty(),
    )


def _metric_changed(
    audit: Audit,
    row: Mapping[str, Any],
    before: float,
    after: float,
    allowed: float,
    outputs: list[tuple[str, Difference]],
) -> Finding:
    key = text(row, "key") or "metric"
    a, b = two_numbers(before, after)
    same = bool(outputs) and not any(d.disagrees for _, d in outputs)
    cause = (
        "The outputs are the same, so the name now stands for another function."
        if same
        else "The outputs changed too."
    )
    return Finding(
        subject=key,
        title=f"{key} is {a} before saving and {b} after loading",
        message=(
            f"On the same {whole(row, 'samples') or 0:,} samples evaluate() gives {key} = {a} for "
            f"the model in memory and {b} for the one that was saved as "
            f"{text(audit.facts, 'format') or 'a file'} and loaded. {cause}"
        ),
        witnesses=(Witness(f"{key} before", before), Witness(f"{key} after", after)),
        suggestion=(
            "Compile with the metric object itself (keras.metrics.SparseCategoricalAccuracy()) "
            "instead of a name, and do not map its name to something else in custom_objects."
            if same
            else "Repair what changes the outputs first."
        ),
        first_step=audit.step,
        last_step=audit.step,
        certainty=(
            f"The gap is {number(abs(before - after))}; {number(allowed)} is allowed for rounding "
            "and for samples that flip by a rounding."
        ),
    )


_OUTPUT: dict[str, Any] = {
    "name": "output",
    "difference": {
        "largest": 0.0,
        "scale": 1.0,
        "elements": 640,
        "dtype": "float32",
        "noise": 0.0,
    },
}
