"""A number that Keras shows is not what its own labels, outputs and weights give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    Parting,
    finding,
    finding_of,
    finite_rows,
    maps,
    parting,
    quantities_of,
    text,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.shown_metrics import ShownMetric, in_words, rounding_of, shown_metrics

# What else the number shown may be, and what that would mean.
_OTHER_MEANINGS = {
    "all": "It is the number over all positions, without mask and weights.",
    "unmasked": "It is the number over the positions that are real by the input.",
    "weighted": "It is the number weighted by the sample weights, which this metric should ignore.",
    "batch": "It is the number of the last batch alone instead of a mean since the epoch began.",
}


@dataclass(frozen=True)
class MetricRecomputeMismatch(Rule):
    """A metric or loss as shown differs from the same, recomputed on the same outputs.

    Compares: what Keras shows with the value recomputed from the labels, outputs, mask and weights
    that reached it, by a routine of ours, batch by batch since the epoch began. Of
    CategoricalAccuracy also the numbers of each label with those of each output.

    Why: a number that decides which model is kept must be what its name says. Metrics resolved
    under another name, data that was swapped, state that was not reset, a train step that
    shows another number: all look plausible.

    Try: check which function the name stands for (`model.metrics`), what `train_step` returns, and
    whether the metric resets its state.

    Source: TensorFlow issues 44556, 42459, 41958. The tolerance is the largest rounding error of a
    float32 mean over the batches of an epoch (Higham 2002, chapter 4).
    """

    id = "metric-recompute-mismatch"
    severity = Severity.CRITICAL
    needs = ("*/reported", "*/recomputed")

    patience: int = 3  # batches in a row; validation passes count each

    @staticmethod
    def fires_on() -> RunHistory:
        return history(accuracy__reported=[0.9] * 5, accuracy__recomputed=[0.4] * 5)

    @staticmethod
    def quiet_on() -> RunHistory:
        # One rounding apart, as two sums of the same terms are.
        return history(accuracy__reported=[0.9] * 5, accuracy__recomputed=[0.9000001] * 5)

    def check(self, run: RunView) -> Iterable[Finding]:
        metrics = shown_metrics(run)
        keys = [
            key
            for key in quantities_of(run, "*", "reported", "recomputed")
            if not (key.removeprefix("val_").endswith("loss") and _shows_own_loss(run))
        ]
        of_classes = list(_of_class_numbers(run))
        if not keys and not of_classes:
            raise NotTestable(
                "the model's own train_step may show any loss, and no other metric is recomputed"
            )
        yield from of_classes
        for key in keys:
            metric = metrics.get(key.removeprefix("val_"), ShownMetric(key))
            found = self._of(run, key, metric)
            if found is not None:
                yield found

    def _of(self, run: RunView, key: str, metric: ShownMetric) -> Finding | None:
        names = f"{key}/reported", f"{key}/recomputed"
        rows = finite_rows(run.rows(*names))
        shown, true = rows[names[0]], rows[names[1]]
        tolerance = rounding_of(run, key, rows.steps, shown, true)
        patience = 1 if key.startswith("val_") else self.patience
        part = parting(rows, shown, true, tolerance, patience=patience)
        meaning = "" if part is None else _meaning(run, key, part)
        if part is None or (metric.recomputed_by == "overridden update_state" and not meaning):
            return None  # an `update_state` of the user's may mean something of its own
        return finding(
            part,
            subject=key,
            title=f"{key} is not what the outputs give",
            message=in_words(key, part.shown, part.true, "Recomputed on the same outputs")
            + f" It has been so since step {part.first_step:,}. {meaning}".rstrip(),
            suggestion=_suggestion(key, metric),
            names=names,
            because="float32 rounding of a mean since the epoch began",
            severity=Severity.WARNING if metric.is_own else None,
        )


def _of_class_numbers(run: RunView) -> Iterator[Finding]:
    """CategoricalAccuracy takes the place of the largest number of a label for its class."""
    for audit in run.new_audits("columns") if run.has_audit("columns") else []:
        outputs = {text(facts, "name"): facts for facts in maps(audit.facts, "outputs")}
        for metric in maps(audit.facts, "metrics"):
            output = outputs.get(text(metric, "output"), {})
            shape, labels = (list(output.get(key) or []) for key in ("shape", "label_shape"))
            is_one_hot = not labels or labels not in (shape[:-1], [*shape[:-1], 1])
            key, classes = text(metric, "key"), shape[-1] if shape else None
            if metric.get("kind") != "CategoricalAccuracy" or is_one_hot or not key:
                continue
            if not isinstance(classes, int) or classes < 2:
                continue
            yield finding_of(
                audit,
                key,
                f"{key} reads class numbers as one-hot labels",
                f"{key} is a CategoricalAccuracy: of each label it takes the place of the largest "
                f"of {classes} numbers. The labels have 1 number each, the class itself, so that "
                f"{key} compares the outputs with another class than the label says.",
                (Witness("numbers of a label", 1), Witness("numbers of an output", classes)),
                "Compile SparseCategoricalAccuracy, or the metric as 'accuracy', for labels that "
                "are class numbers.",
                certainty="Shapes are compared exactly.",
                severity=Severity.WARNING,
            )


def _meaning(run: RunView, key: str, part: Parting) -> str:
    """What the number shown is instead, where it equals another way to count."""
    for witness, words in _OTHER_MEANINGS.items():
        if not run.has(f"{key}/{witness}"):
            continue
        rows = run.rows(f"{key}/reported", f"{key}/{witness}")
        at = np.flatnonzero(rows.steps == part.last_step)
        if len(at) and abs(rows[f"{key}/{witness}"][at[0]] - part.shown) <= part.tolerance:
            return words
    return ""


def _shows_own_loss(run: RunView) -> bool:
    """Whether a `train_step` of the user's decides what is shown as loss."""
    return run.has_audit("compile") and run.audit("compile").facts.get("custom_train_step") is True


def _suggestion(key: str, metric: ShownMetric) -> str:
    if key.startswith("val_"):
        return (
            "Check which data the validation really used (a callback that calls `evaluate`, a "
            "cached iterator) and which function the metric's name stands for."
        )
    if key.endswith("loss"):
        return "Check what `train_step` returns as loss, and the loss weights that were compiled."
    return (
        f"Check which function {key} stands for ({metric.kind or 'see model.metrics'}), whether it "
        "resets its state at each epoch, and whether `get_metrics_result` is overridden."
    )
