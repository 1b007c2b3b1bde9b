"""What reaches the model is not what the data is, or is no longer what it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainsanity.rules.comparison import (
    maps,
    measured,
    merged,
    name_of,
    not_measured,
    number,
    parting,
    real,
    share,
    text,
    trailing_mean,
    whole,
    why_thinned,
)
from trainsanity.rules.history import KEPT_ROWS, RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class InputDrift(Rule):
    """The inputs drift from the raw data, from the first epoch, or from the validation data.

    Compares: the share of zero border pixels of what reaches the first layer with weights with that
    of the raw images; the mean input of each epoch with that of the first; and mean and standard
    deviation of the arrays to validate with those of the arrays to train.

    Why: augmentation that fills with zeros teaches the model black borders that real images do not
    have. A pipeline whose numbers wander between epochs feeds another problem than it began with.
    Validation data that was normalized twice, or not at all, says nothing of the model.

    Try: `fill_mode="reflect"` or "nearest" in rotations and shifts; look at one batch as pictures.

    Source: TensorFlow issue 44501. Augmentation is meant to change data, so this never is more than
    advice. Epochs over the same rows have equal means up to the noise of augmentation, which the
    batches of the first epoch show.
    """

    id = "input-drift"
    severity = Severity.ADVICE
    needs = ("inputs*/mean", "inputs*/std")

    window: int = 20  # batches
    border: float = 0.05  # of the border pixels, more than the raw images have
    errors: float = 6.0  # standard errors of an epoch's mean
    material: float = 0.25  # of the first epoch's standard deviation
    apart: float = 5.0  # from the validation data: standard deviations, or times; own judgement
    least_rows: int = 20  # of each

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(border=0.21)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(border=0.021)

    def check(self, run: RunView) -> Iterable[Finding]:
        found = list(self._validation(run))
        inputs = [
            q for q in run.quantities("mean", "std") if q == "inputs" or q.startswith("inputs:")
        ]
        reasons = [self._why_not(run, quantity) for quantity in inputs]
        if not found and not inputs:
            raise not_measured(run, "inputs/mean")
        if not found and all(reasons):
            raise NotTestable(reasons[0] or "")
        for quantity in inputs:
            found.extend(self._borders(run, quantity))
            found.extend(merged(self._epochs(run, quantity)))
        return found

    def _validation(self, run: RunView) -> Iterator[Finding]:
        """Other data may be meant: only scales that have nothing to do with each other are told."""
        for audit in run.new_audits("raw_data") if run.has_audit("raw_data") else []:
            inputs = maps(audit.facts, "inputs")
            for facts in inputs:
                given = facts.get("validation")
                other = given if isinstance(given, Mapping) else {}
                shift, spread = real(other, "shift"), real(other, "spread")
                rows = min(whole(each, "rows") or 0 for each in (facts, other))
                if rows < self.least_rows or shift is None or not spread:
                    continue
                if shift > self.apart or max(spread, 1 / spread) > self.apart:
                    of = f" of {text(facts, 'name')}" if len(inputs) > 1 else ""
                    yield _of_another_scale(
                        f"validation data{of}", audit, shift, spread, self.apart
                    )

    def _why_not(self, run: RunView, quantity: str) -> str | None:
        """Epochs cannot be compared by some of their batches: they may be sorted."""
        has_border = run.has(f"{quantity}/border_zero") and run.has_audit("raw_data")
        return None if has_border else why_thinned(run, f"{quantity}/mean")

    def _borders(self, run: RunView, quantity: str) -> Iterator[Finding]:
        raw = real(_raw(run, name_of(quantity)), "border_zero")
        name = f"{quantity}/border_zero"
        if raw is None or not run.has(name):
            return
        rows = run.rows(name)
        fed = trailing_mean(rows[name], self.window)
        part = parting(
            rows, np.maximum(fed, raw), np.full_like(fed, raw), self.border, where=fed > raw
        )
        if part is None:
            return
        yield Finding(
            subject=f"input {name_of(quantity)}".strip(),
            title="Augmentation adds black borders",
            message=f"{share(part.shown)} of the border pixels that reach the model are exactly 0; "
            f"in the raw images {share(raw)} are. It has been so since step {part.first_step:,}.",
            witnesses=(Witness(name, part.shown), Witness("raw border zeros", raw)),
            suggestion='Use fill_mode="reflect" or "nearest" in RandomRotation, RandomTranslation '
            "and RandomZoom, unless black borders are wanted.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            certainty=f"Means over {self.window} batches; {share(self.border)} more than the raw "
            "images have would be allowed.",
        )

    def _epochs(self, run: RunView, quantity: str) -> Iterator[Finding]:
        """The mean of a new epoch against that of the first epoch still at hand."""
        if not run.has_audit("epoch"):
            return
        ended = [a for a in run.audits("epoch") if not text(a.facts, "not_testable")]
        first = self._mean(run, quantity, ended[0]) if ended else None
        if first is None:
            return
        for audit in measured(run, "epoch"):
            now = self._mean(run, quantity, audit)
            reach = audit.step - (whole(ended[0].facts, "first_step") or 0)
            if now is None or audit is ended[0] or reach >= KEPT_ROWS:
                continue  # further apart, the first epoch is no longer at hand for certain
            allowed = self.errors * np.hypot(first[1], now[1]) + self.material * first[2]
            if abs(now[0] - first[0]) > allowed:
                yield _drifted(quantity, audit, first[0], now[0], float(allowed))

    def _mean(self, run: RunView, quantity: str, epoch: Audit) -> tuple[float, float, float] | None:
        """Mean over an epoch, its standard error, and the inputs' standard deviation."""
        first, last = whole(epoch.facts, "first_step"), whole(epoch.facts, "last_step")
        rows = run.rows(f"{quantity}/mean", f"{quantity}/std")
        if first is None or last is None:
            return None
        inside = (rows.steps >= first) & (rows.steps <= last)
        means, deviations = rows[f"{quantity}/mean"][inside], rows[f"{quantity}/std"][inside]
        if inside.sum() != last - first + 1 or len(means) < 2 or not np.isfinite(means).all():
            return None
        error = float(means.std(ddof=1) / np.sqrt(len(means)))
        return float(means.mean()), error, float(np.mean(deviations))


def _of_another_scale(
    name: str, audit: Audit, shift: float, spread: float, apart: float
) -> Finding:
    return Finding(
        subject=name,
        title="Validation data has another scale than training data",
        message="Feature by feature, the inputs to validate have a standard deviation of "
        f"{number(spread)} times that of the inputs to train, and a mean {number(shift)} standard "
        "deviations from theirs (medians over the features). One of the two was normalized twice, "
        "or not at all, or with numbers of its own.",
        witnesses=(
            Witness("standard deviation of validation by training inputs", spread),
            Witness("the same for one population", 1.0),
            Witness("distance of the means", shift, "standard deviations"),
        ),
        suggestion="Normalize both by the same function with the numbers of the training data, or "
        "put a Normalization layer into the model.",
        first_step=audit.step,
        last_step=audit.step,
        certainty=f"Of rows spread over both arrays; {number(1 / apart)} to {number(apart)} times, "
        f"and {number(apart)} standard deviations, are allowed.",
    )


def _drifted(quantity: str, audit: Audit, first: float, now: float, allowed: float) -> Finding:
    epoch = (whole(audit.facts, "epoch") or 0) + 1
    return Finding(
        subject=f"input {name_of(quantity)}".strip(),
        title="The inputs are no longer what they were in the first epoch",
        message=f"The mean input of epoch {epoch} is {number(now)}; in the first epoch it was "
        f"{number(first)}.",
        witnesses=(
            Witness(f"{quantity}/mean of epoch {epoch}", now),
            Witness(f"{quantity}/mean of the first epoch", first),
        ),
        suggestion="If the data is not meant to change between epochs, look for a preprocessing "
        "step that is applied to its own result, or a scaler that is fitted again.",
        first_step=whole(audit.facts, "first_step") or 0,
        last_step=audit.step,
        certainty=f"The gap is {number(abs(now - first))}; {number(allowed)} is allowed.",
    )


def _raw(run: RunView, name: str) -> Mapping[str, Any]:
    inputs = maps(run.audit("raw_data").facts, "inputs") if run.has_audit("raw_data") else []
    if len(inputs) == 1 and not name:
        return inputs[0]
    return next((facts for facts in inputs if text(facts, "name") == name), {})


def _example(*, border: float) -> RunHistory:
    n = 30
    raw = {"name": "images", "rows": 512, "mean": 0.5, "std": 0.25, "border_zero": 0.02}
    return history(
        audits=[("raw_data", 0, {"inputs": [raw]})],
        inputs__mean=[0.5] * n,
        inputs__std=[0.25] * n,
        inputs__border_zero=[border] * n,
    )
