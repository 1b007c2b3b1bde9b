"""Sample weights were given, and the metric that Keras shows ignores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import (
    batches_in_epoch,
    finite_rows,
    not_measured,
    number,
    parting,
    quantities_of,
)
from trainsanity.rules.history import Floats, Rows, RunHistory, RunView, Steps, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.shown_metrics import ShownMetric, in_words, shown_metrics


@dataclass(frozen=True)
class WeightedNaiveDisagreement(Rule):
    """A metric ignores the sample weights that were given, and that changes what it says.

    Compares: the metric as Keras shows it with the same metric weighted by the sample weights, on
    the same outputs.

    Why: metrics under `metrics=` ignore weights by design, only the loss and those under
    `weighted_metrics=` use them. If the weights say which samples matter, the number shown is about
    other samples than the loss.

    Try: compile the metric under `weighted_metrics=`, or show both.

    Source: Keras documentation of `Model.compile`. The gap must exceed both what matters and what
    chance does with this many samples: the standard error of a weighted against a plain mean is
    the spread of the values, times the relative spread of the weights, divided by √n.
    """

    id = "weighted-naive-disagreement"
    severity = Severity.WARNING
    needs = ("*/reported", "*/weighted", "sample_weight*/mean", "batch/size")

    patience: int = 20  # batches in a row
    material_score: float = 0.05  # of a score in 0..1; our own judgement: 5 points
    material_error: float = 0.2  # share of the larger of two errors; our own judgement
    errors: float = 4.0  # standard errors; chance exceeds them once in 16,000

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(weighted=0.62)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(weighted=0.90)

    def check(self, run: RunView) -> Iterable[Finding]:
        metrics = shown_metrics(run)
        unweighted = [
            metric
            for key in quantities_of(run, "*", "reported", "weighted")
            if (metric := metrics.get(key)) is not None and not metric.weighted
        ]
        if not unweighted:
            raise NotTestable("no metric under metrics= can be weighted again")
        weights = {output: _weight_names(run, output) for output in {m.output for m in unweighted}}
        reasons = [reason for reason in weights.values() if isinstance(reason, NotTestable)]
        if len(reasons) == len(weights):
            raise reasons[0]
        for metric in unweighted:
            names = weights[metric.output]
            if not isinstance(names, NotTestable) and not _shown_both_ways(metric, metrics):
                yield from self._of(run, metric, names)

    def _of(
        self, run: RunView, metric: ShownMetric, weights: tuple[str, str, str]
    ) -> Iterable[Finding]:
        names = f"{metric.key}/reported", f"{metric.key}/weighted"
        rows = finite_rows(run.rows(*names, "batch/size"))
        shown, true = rows[names[0]], rows[names[1]]
        samples = batches_in_epoch(run, rows.steps) * rows["batch/size"]
        spread = _spread_at(rows.steps, finite_rows(run.rows(*weights)), weights)
        allowed = self._allowed(metric, shown, true, samples, spread)
        part = parting(rows, shown, true, allowed, patience=self.patience)
        if part is None:
            return
        least, most = run.totals(weights[1]).min, run.totals(weights[2]).max
        yield Finding(
            subject=metric.key,
            title=f"{metric.key} ignores the sample weights",
            # No step here: the mean begins anew with every epoch, and with it the disagreement.
            message=in_words(metric.key, part.shown, part.true, "Weighted by the weights you gave")
            + " Metrics under metrics= ignore weights by design; "
            f"yours lie between {number(least)} and {number(most)}.",
            witnesses=(
                Witness(names[0], part.shown),
                Witness(names[1], part.true),
                Witness(weights[0], run.totals(weights[0]).last),
            ),
            suggestion=f"Compile {metric.key} under weighted_metrics=, or under both to see both. "
            "If the plain number is what you want, ignore this rule for the run.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            severity=_severity(run),
            certainty=part.certainty("what matters and what chance does with this many samples"),
        )

    def _allowed(
        self, metric: ShownMetric, shown: Floats, true: Floats, samples: Floats, spread: Floats
    ) -> Floats:
        """The gap that must be exceeded: what matters plus what chance does; shape (n,)."""
        larger = np.maximum(np.abs(shown), np.abs(true))
        if metric.higher_is_better:
            matters, deviation = np.full(len(shown), self.material_score), np.full(len(shown), 0.5)
        else:
            # Squared errors of a normal variable spread by 1.4 of their mean; outliers by more.
            matters, deviation = self.material_error * larger, 2.0 * larger
        chance = self.errors * deviation * spread / np.sqrt(np.maximum(samples, 1.0))
        return np.asarray(matters + chance, np.float64)


def _severity(run: RunView) -> Severity | None:
    """Class weights balance the loss on purpose, so there a plain metric is usually wanted."""
    if run.has_audit("fit") and run.audit("fit").facts.get("class_weight"):
        return Severity.ADVICE
    return None


def _weight_names(run: RunView, output: str) -> tuple[str, str, str] | NotTestable:
    """Signals of mean, smallest and largest weight: as given, or else as they reached the loss.

    Returns:
        The names; or why there is nothing to compare: no weights were given, or all are equal.
    """
    quantity = f"sample_weight:{output}" if output else "sample_weight"
    for prefix in ("given_", ""):
        mean, least, most = (f"{quantity}/{prefix}{word}" for word in ("mean", "min", "max"))
        if run.has(mean, least, most):
            if not run.totals(least).min < run.totals(most).max:
                return NotTestable("all sample weights are equal: weighting changes nothing")
            return mean, least, most
    return not_measured(run, f"{quantity}/mean")


def _spread_at(steps: Steps, rows: Rows, weights: tuple[str, str, str]) -> Floats:
    """The weights' relative spread as far as known at each step; they are seen only now and then.

    Returns:
        Shape of `steps`; NaN where no finite weight is known at all, which parts nothing.
    """
    if not len(rows):
        return np.full(len(steps), np.nan)
    spread = _relative_spread(*(rows[name] for name in weights))
    return spread[np.maximum(np.searchsorted(rows.steps, steps, side="right") - 1, 0)]


def _relative_spread(mean: Floats, least: Floats, most: Floats) -> Floats:
    """An upper bound of the weights' standard deviation divided by their mean; shape (n,).

    Over all batches so far, as weights may differ between batches only.

    Source: Bhatia and Davis (2000), the variance is at most (max − mean)·(mean − min).
    """
    mean = np.cumsum(mean) / np.arange(1, len(mean) + 1)
    above = np.maximum.accumulate(most) - mean
    below = mean - np.minimum.accumulate(least)
    variance = np.maximum(above, 0.0) * np.maximum(below, 0.0)
    positive = mean > 0
    spread = np.sqrt(variance) / np.where(positive, mean, 1.0)
    return np.where(positive, spread, np.inf)  # weights that sum to 0 average nothing


def _shown_both_ways(metric: ShownMetric, others: Mapping[str, ShownMetric]) -> bool:
    return any(
        other.weighted and other.kind == metric.kind and other.output == metric.output
        for other in others.values()
    )


def _example(*, weighted: float) -> RunHistory:
    n = 30
    accuracy = {"key": "accuracy", "kind": "BinaryAccuracy", "recomputed_by": "reference"}
    return history(
        audits=[("columns", 1, {"metrics": [accuracy]})],
        accuracy__reported=[0.91] * n,
        accuracy__weighted=[weighted] * n,
        sample_weight__mean=[0.5] * n,
        sample_weight__min=[0.0] * n,
        sample_weight__max=[1.0] * n,
        batch__size=[256.0] * n,
    )
