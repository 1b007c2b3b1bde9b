"""A mask lost on its way counts padding; a mask that covers too much hides errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from trainsanity.rules.comparison import Parting, merged, name_of, parting, quantities_of, share
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.mask_flow import FlowLayer, first_lost, is_aligned, last_made
from trainsanity.rules.masked_numbers import (
    SHARE_TOLERANCE,
    ShownAndReal,
    comparisons,
    counts_padding,
    flattered,
    ignores_its_mask,
    most_telling,
    padded_loss,
)
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness

MEAN_ROUNDING = "float32 rounding of a mean since the epoch began"
SHARE_ROUNDING = "float32 rounding of a share"


@dataclass(frozen=True)
class MaskCoverageMismatch(Rule):
    """What the loss or the metrics count is not what the input says is real.

    Compares: the share of positions that are real by the input (ids other than padding, or what
    Masking let through) with the share that the mask reaching the loss, and the metrics, calls
    real; and each metric over what Keras counted with the same metric over real positions.

    Why: operators such as `x + y` and layers without mask support drop the mask without a word.
    Padding is easy to predict, so accuracy looks better than it is and the loss learns padding. A
    mask that covers too much hides errors in the same way.

    Try: use the layer instead of the operator (`Add()([x, y])`), set `supports_masking` on your own
    layers, or give padding a sample weight of 0 and compile metrics under `weighted_metrics=`.

    Source: Keras guide "Understanding masking & padding"; TensorFlow issue 40002. The tolerance is
    the rounding of a share, or of an epoch's mean, in float32.
    """

    id = "mask-coverage-mismatch"
    severity = Severity.CRITICAL
    needs = ("mask*/input_coverage", "mask*/loss_coverage")

    patience: int = 20  # batches in a row before a mask that hides real positions is spoken of
    material_score: float = 0.05  # of a score in 0..1; our own judgement: 5 points of accuracy
    material_error: float = 0.2  # share of the larger of two errors; our own judgement

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(lost=True)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(lost=False)

    def check(self, run: RunView) -> Iterable[Finding]:
        masks = quantities_of(run, "mask", "input_coverage", "loss_coverage")
        aligned = [mask for mask in masks if is_aligned(run, name_of(mask))]
        if not aligned:
            raise NotTestable("every mask may end where it ends: no output has its positions")
        return merged(found for mask in aligned for found in self._of(run, mask))

    def _of(self, run: RunView, mask: str) -> Iterator[Finding]:
        credit = _counted_padding(run, mask)
        if credit is not None:
            yield _other_mask(run, mask, credit) or _lost(run, mask, credit)
            return
        if (numbers := counts_padding(run, mask)) is not None:
            yield _metrics_count_padding(run, mask, numbers)
        elif (numbers := ignores_its_mask(run, mask)) is not None:
            yield _metric_ignores_mask(numbers)
        if (hidden := self._hidden(run, mask)) is not None:
            yield self._hides(run, mask, hidden)

    def _hidden(self, run: RunView, mask: str) -> Parting | None:
        if not run.has(f"{mask}/real_uncounted"):
            return None
        rows = run.rows(f"{mask}/real_uncounted")
        share_hidden = rows[f"{mask}/real_uncounted"]
        none = np.zeros_like(share_hidden)
        return parting(rows, share_hidden, none, SHARE_TOLERANCE, patience=self.patience)

    def _hides(self, run: RunView, mask: str, hidden: Parting) -> Finding:
        numbers = flattered(
            run,
            mask,
            score=self.material_score,
            error=self.material_error,
            patience=self.patience,
        )
        layer = last_made(run, name_of(mask))
        told = ""
        if numbers is not None:
            told = f"{numbers.in_words()} What the mask leaves out is what the model gets wrong. "
        maker = f" It comes from {layer.in_words()}." if layer else ""
        return Finding(
            subject=layer.name if layer else _output(mask),
            title=f"The mask hides {share(hidden.shown)} of the real positions",
            message=f"{told}Since step {hidden.first_step:,} the mask that reaches the loss leaves "
            f"out {share(hidden.shown)} of the positions that are real by the input.{maker}",
            witnesses=(
                *(numbers.witnesses if numbers else ()),
                Witness(f"{mask}/real_uncounted", hidden.shown),
                Witness("real positions that may be left out", 0.0),
            ),
            suggestion="Make the mask from the input alone, never from predictions. If only these "
            "positions are meant to count, tell so: Expect(ignore=('mask-coverage-mismatch',)).",
            first_step=hidden.first_step,
            last_step=hidden.last_step,
            count=hidden.count,
            severity=Severity.WARNING if numbers else Severity.ADVICE,
            replaces=_replaces(mask, layer),
            certainty=hidden.certainty(SHARE_ROUNDING),
        )


def _other_mask(run: RunView, mask: str, credit: Parting) -> Finding | None:
    """A mask arrives, and it is not that of the input; None where none arrives."""
    counted, is_real = _coverage(run, mask, credit.last_step)
    if counted >= 1 - SHARE_TOLERANCE or first_lost(run, name_of(mask)) is not None:
        return None
    layer = last_made(run, name_of(mask))
    numbers = most_telling(comparisons(run, mask))
    told = f"{numbers.in_words()} " if numbers else ""
    maker = f", made by {layer.in_words()}," if layer else ""
    return Finding(
        subject=layer.name if layer else _output(mask),
        title="The mask that reaches the loss is not that of the input",
        message=f"{told}The mask that reaches the loss{maker} marks padding as real: since step "
        f"{credit.first_step:,} {share(credit.shown)} of what the loss counts is padding. It "
        f"counts {share(counted)} of the positions; {share(is_real)} are real by the input.",
        witnesses=(
            *(numbers.witnesses if numbers else ()),
            Witness(f"{mask}/padding_credit", credit.shown),
            Witness("padding that may count", 0.0),
        ),
        suggestion="Make the mask from the input alone, never from predictions, and hand it on "
        "unchanged.",
        first_step=credit.first_step,
        last_step=credit.last_step,
        count=credit.count,
        replaces=_replaces(mask, layer),
        certainty=f"Padding among what counts: {credit.certainty(SHARE_ROUNDING)}",
    )


def _lost(run: RunView, mask: str, credit: Parting) -> Finding:
    layer = first_lost(run, name_of(mask))
    numbers = most_telling((counts_padding(run, mask), padded_loss(run, mask)))
    counted, is_real = _coverage(run, mask, credit.last_step)
    at = f" at {layer.name}" if layer else ""
    return Finding(
        subject=layer.name if layer else _output(mask),
        title=f"The loss counts padding: the mask is lost{at}",
        message=f"{f'{numbers.in_words()} ' if numbers else ''}{_died(layer)} Since step "
        f"{credit.first_step:,} the loss counts {share(counted)} of the positions, while "
        f"{share(is_real)} are real by the input: {share(credit.shown)} of what counts is padding.",
        witnesses=(
            *(numbers.witnesses if numbers else ()),
            Witness(f"{mask}/loss_coverage", counted),
            Witness(f"{mask}/input_coverage", is_real),
            Witness(f"{mask}/padding_credit", credit.shown),
        ),
        suggestion=_remedy(layer),
        first_step=credit.first_step,
        last_step=credit.last_step,
        count=credit.count,
        replaces=_replaces(mask, layer),
        certainty=f"Padding among what counts: {credit.certainty(SHARE_ROUNDING)}",
    )


def _metrics_count_padding(run: RunView, mask: str, numbers: ShownAndReal) -> Finding:
    layer = first_lost(run, name_of(mask))
    part = numbers.part
    counted, is_real = _coverage(run, mask, part.last_step)
    loss_is_right = counted - is_real <= SHARE_TOLERANCE
    on_jax = run.facts.backend == "jax" and layer is None and loss_is_right
    keras = f"Keras {run.facts.keras_version}".strip()
    if on_jax:
        subject, title = "training metrics", f"{keras} on JAX counts padding in training metrics"
        cause = (
            f"This is a fault of {keras} on JAX, not of your model: predictions lose their mask "
            "where they leave the gradient, so training metrics count padding, the loss does not."
        )
        remedy = (
            "Trust the validation metrics, which keep the mask; or give padding a sample weight "
            "of 0 and compile the metric under weighted_metrics=."
        )
    else:
        subject, title = layer.name if layer else _output(mask), "The metrics count padding"
        cause = _died(layer) + (" The loss gets the mask, the metrics do not." * loss_is_right)
        remedy = _remedy(layer)
    return Finding(
        subject=subject,
        title=title,
        message=f"{numbers.in_words()} {cause} Since step {part.first_step:,}: "
        f"{share(is_real)} of the positions are real by the input.",
        witnesses=(*numbers.witnesses, Witness(f"{mask}/input_coverage", is_real)),
        suggestion=remedy,
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        replaces=_replaces(mask, layer),
        certainty=part.certainty(MEAN_ROUNDING),
    )


def _metric_ignores_mask(numbers: ShownAndReal) -> Finding:
    metric, part = numbers.metric, numbers.part
    kind = metric.kind or "its class"
    return Finding(
        subject=metric.key,
        title=f"Metric {metric.key} ignores the mask it is given",
        message=f"{numbers.in_words()} "
        f"It has been so since step {part.first_step:,}: the mask reaches the "
        f"metric, but {kind} has an `update_state` of its own that counts every position.",
        witnesses=numbers.witnesses,
        suggestion=f"In `update_state` of {kind}, hand the outputs on as they come, so that their "
        "mask comes along, or weigh the values by the mask.",
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        certainty=part.certainty(MEAN_ROUNDING),
    )


def _counted_padding(run: RunView, mask: str) -> Parting | None:
    """Batches in which the loss counts positions that are padding in the input."""
    if not run.has(f"{mask}/padding_credit"):
        return None
    rows = run.rows(f"{mask}/padding_credit")
    credit = rows[f"{mask}/padding_credit"]
    return parting(rows, credit, np.zeros_like(credit), SHARE_TOLERANCE)


def _coverage(run: RunView, mask: str, step: int) -> tuple[float, float]:
    """What the loss counts and what is real, at a step."""
    rows = run.rows(f"{mask}/loss_coverage", f"{mask}/input_coverage")
    at = min(int(np.searchsorted(rows.steps, step)), len(rows) - 1)
    return float(rows[f"{mask}/loss_coverage"][at]), float(rows[f"{mask}/input_coverage"][at])


def _output(mask: str) -> str:
    return f"output {name_of(mask)}" if name_of(mask) else "output"


def _replaces(mask: str, layer: FlowLayer | None) -> tuple[str, ...]:
    """What was told of the output before the layers were looked at."""
    return (_output(mask),) if layer is not None else ()


def _died(layer: FlowLayer | None) -> str:
    if layer is None:
        return "No mask arrives."
    return f"The mask died at {layer.in_words()}. {layer.cause()}".rstrip()


def _remedy(layer: FlowLayer | None) -> str:
    if layer is not None:
        return layer.remedy()
    return (
        "Look for the first layer behind the embedding that drops the mask (an operator such as "
        "`x + y`, or a layer without `supports_masking`); or give padding a sample weight of 0."
    )


def _example(*, lost: bool) -> RunHistory:
    add = {"class": "Add", "mask_in": 0.34}
    add |= (
        {"name": "add_1", "operation": True, "site": "model.py:41"}
        if lost
        else {"name": "add", "mask_out": 0.34}
    )
    embedding = {"name": "embedding", "class": "Embedding", "mask_out": 0.34, "produced": True}
    outputs = {"tags": {"aligned": True, "first_lost": "add_1" if lost else None}}
    accuracy = {
        "key": "accuracy",
        "kind": "SparseCategoricalAccuracy",
        "recomputed_by": "reference",
    }
    counted = 1.0 if lost else 0.34
    return history(
        audits=[
            ("columns", 1, {"metrics": [accuracy]}),
            ("mask_flow", 0, {"layers": [embedding, add], "outputs": outputs}),
        ],
        mask__input_coverage=[0.34] * 4,
        mask__loss_coverage=[counted] * 4,
        mask__metric_coverage=[counted] * 4,
        mask__padding_credit=[0.66 if lost else 0.0] * 4,
        mask__real_uncounted=[0.0] * 4,
        accuracy__reported=[0.5, 0.54, 0.55, 0.56] if lost else [0.2, 0.21, 0.22, 0.22],
        accuracy__unmasked=[0.2, 0.21, 0.22, 0.22],
    )
