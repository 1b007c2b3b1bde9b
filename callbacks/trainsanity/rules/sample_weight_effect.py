"""Sample or class weights were given and did not do to the loss what they say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trainsanity.rules.comparison import (
    Parting,
    finding_of,
    maps,
    mean_tolerance,
    merged,
    name_of,
    not_measured,
    number,
    parting,
    real,
    text,
    two_numbers,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, NotTestable, Rule, Severity, Witness
from trainsanity.rules.shown_metrics import loss_tolerance

LOSS = ("loss/differentiated", "loss/batch", "loss/batch_unweighted")


@dataclass(frozen=True)
class SampleWeightEffect(Rule):
    """The weights that were given are not the weights that entered the loss.

    Compares: the keys of class_weight with the classes of the output; the mean weight that
    class_weight asks for with the mean weight of the batch; the mean weight that came with the
    batch with the mean weight that reached the loss; the loss that was differentiated with the loss
    recomputed with and without the weights; the smallest and largest weight of a batch with the
    number of losses that they multiply; and a loss that only code of your own can compute, for the
    captured rows, with the same under other weights.

    Why: weights that get lost leave no trace: a train step that forgets `sample_weight`, class
    weights with keys that match no label, a loss class that ignores its third argument, a loss
    that returns one number for the whole batch, whose samples no weight can tell apart (`Dice` and
    `Tversky` in Keras 3.15). Rare classes then stay unlearnt.

    Try: pass `sample_weight` on in `train_step`; use whole numbers, not texts, as keys of
    class_weight; call `super().__call__` in a loss of your own, and return one loss per sample.

    Source: TensorFlow issues 36694 and 29965; keras/src/trainers/data_adapters (a class that
    class_weight does not name weighs 1). The tolerance is the float32 rounding of a batch's mean.
    """

    id = "sample-weight-effect"
    severity = Severity.CRITICAL
    needs = ("sample_weight*/given_mean", "sample_weight*/mean")

    patience: int = 3  # batches in a row

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(reached=1.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(reached=0.4)

    def check(self, run: RunView) -> Iterable[Finding]:
        given = run.quantities("given_mean", "mean")
        declared = run.quantities("declared_mean", "given_mean")
        can_recount = run.has(*LOSS)
        yield from merged([*_without_effect(run), *_of_no_class(run)])
        if not (given or declared or can_recount):
            raise not_measured(run, "sample_weight/given_mean")
        if given and not declared and all(_weighs_nothing(run, quantity) for quantity in given):
            raise NotTestable("every sample weight is 1, so weighting changes nothing")
        for quantity in declared:
            yield from self._class_weight(run, quantity)
        for quantity in given:
            yield from self._given(run, quantity)
        for quantity in run.quantities("loss_values", "min", "max"):
            yield from self._averaged(run, quantity)
        if can_recount:
            yield from self._ignored(run)

    def _class_weight(self, run: RunView, quantity: str) -> Iterator[Finding]:
        names = f"{quantity}/given_mean", f"{quantity}/declared_mean"
        part = self._means(run, names)
        if part is None:
            return
        got, asked = two_numbers(part.shown, part.true)
        yield _finding(
            part,
            names,
            subject=f"class_weight{_of(quantity)}",
            title="class_weight does not reach the samples",
            message=f"The class_weight given to fit asks for a mean weight of {asked} with the "
            f"labels of this batch. The samples carry {got}. "
            f"It has been so since step {part.first_step:,}.",
            suggestion="Use the class numbers themselves (int) as keys of class_weight: a label "
            "that matches no key silently weighs 1.",
        )

    def _given(self, run: RunView, quantity: str) -> Iterator[Finding]:
        names = f"{quantity}/mean", f"{quantity}/given_mean"
        part = self._means(run, names)
        if part is None:
            return
        got, asked = two_numbers(part.shown, part.true)
        yield _finding(
            part,
            names,
            subject=f"sample weights{_of(quantity)}",
            title="The sample weights do not reach the loss",
            message=f"The samples came with a mean weight of {asked}. {got} reached the loss. "
            f"It has been so since step {part.first_step:,}: "
            "the model trains on other weights than you gave.",
            suggestion="In `train_step`, pass sample_weight on: compute_loss(x, y, y_pred, "
            "sample_weight), and the same to compute_metrics.",
        )

    def _ignored(self, run: RunView) -> Iterator[Finding]:
        """The weights reached the loss, which is what it is without them."""
        rows = run.rows(*LOSS)
        used, weighted, plain = (rows[name] for name in LOSS)
        tolerance = loss_tolerance(run, used, weighted, plain)
        as_plain = np.abs(used - plain) <= tolerance
        part = parting(rows, used, weighted, tolerance, patience=self.patience, where=as_plain)
        if part is None:
            return
        got, asked = two_numbers(part.shown, part.true)
        yield _finding(
            part,
            LOSS[:2],
            subject="loss",
            title="The loss ignores the sample weights it is given",
            message=f"The loss of this batch is {got}. With the weights that were given it is "
            f"{asked}; without them it is the {number(part.shown)} that is used. "
            "It has been so since step "
            f"{part.first_step:,}.",
            suggestion="Let your loss class take sample_weight: override `call`, not `__call__`, "
            "or hand sample_weight on to `super().__call__`.",
        )

    def _averaged(self, run: RunView, quantity: str) -> Iterator[Finding]:
        """Weights that differ within a batch, and one loss for all its samples."""
        names = f"{quantity}/min", f"{quantity}/max"
        rows = run.rows(*names)
        part = parting(rows, rows[names[0]], rows[names[1]], 0.0)
        if part is None:
            return
        least, most = two_numbers(part.shown, part.true)
        of = _of(quantity)
        yield replace(
            _finding(
                part,
                names,
                subject=f"loss{of}",
                title=f"The loss{of} is one number, which weights cannot part",
                message=f"The samples of this batch weigh between {least} and {most}. The loss{of} "
                "is one number for the whole batch before they are applied, so that only their "
                "mean has an effect: no sample counts more than another. "
                f"It has been so since step {part.first_step:,}.",
                suggestion="Return one loss per sample, of shape (batch,), and leave the mean to "
                "Keras; give Dice and Tversky an axis of all "
                "dimensions but the first.",
            ),
            severity=Severity.WARNING,
            certainty="Weights are compared exactly; the shape of the loss is known before it is "
            "averaged.",
        )

    def _means(self, run: RunView, names: tuple[str, str]) -> Parting | None:
        rows = run.rows(*names)
        got, asked = rows[names[0]], rows[names[1]]
        return parting(rows, got, asked, mean_tolerance(got, asked), patience=self.patience)


def _without_effect(run: RunView) -> Iterator[Finding]:
    """A loss of the user's that stays the same to the bit with other weights."""
    for audit in run.new_audits("weights_used") if run.has_audit("weights_used") else []:
        loss, again, other = (real(audit.facts, k) for k in ("loss", "again", "other_weights"))
        if loss is None or not loss == again == other or not np.isfinite(loss) or loss == 0:
            continue
        yield finding_of(
            audit,
            "loss",
            "The loss ignores the sample weights it is given",
            f"For the captured rows the loss is {number(loss)}. With weights that rise from the "
            "first row to the last to twice of what they were it is the same.",
            (Witness("loss", loss), Witness("loss with other weights", other)),
            "In a compute_loss of your own multiply the loss of each sample with sample_weight; in "
            "a loss class override `call`, not `__call__`.",
            certainty="Losses are compared to the bit; two computations with the same weights "
            "agree.",
        )


def _of_no_class(run: RunView) -> Iterator[Finding]:
    """Keys of class_weight that are no class, while a class has none: they are shifted."""
    given = run.audit("fit").facts.get("class_weight") if run.has_audit("fit") else None
    if not isinstance(given, Mapping) or not run.has_audit("columns"):
        return
    for audit in run.new_audits("columns"):
        outputs = maps(audit.facts, "outputs")
        is_classifier = len(outputs) == 1 and "crossentropy" in (text(outputs[0], "loss") or "")
        shape = outputs[0].get("shape") if is_classifier else None
        if not isinstance(shape, (list, tuple)) or not shape or not isinstance(shape[-1], int):
            continue
        classes = max(shape[-1], 2)
        named = {int(key) for key in given if str(key).isdecimal()}
        beyond, without = sorted(named - set(range(classes))), set(range(classes)) - named
        if not beyond or not without or len(named) < len(given):
            continue
        yield finding_of(
            audit,
            "class_weight",
            f"class_weight names class {beyond[-1]}, the last class is {classes - 1}",
            f"class_weight has a weight for class {beyond[-1]}, and the output has {classes} "
            f"classes, 0 to {classes - 1}. Class {min(without)} has none, and so weighs 1.",
            (
                Witness("largest key of class_weight", beyond[-1]),
                Witness("last class of the output", classes - 1),
            ),
            "Count classes from 0 in class_weight, as the labels do.",
            certainty="Whole numbers are compared.",
            severity=Severity.WARNING,
        )


def _weighs_nothing(run: RunView, quantity: str) -> bool:
    names = f"{quantity}/given_min", f"{quantity}/given_max"
    return run.has(*names) and run.totals(names[0]).min == run.totals(names[1]).max == 1.0


def _of(quantity: str) -> str:
    return f" of {name_of(quantity)}" if name_of(quantity) else ""


def _finding(
    part: Parting,
    names: tuple[str, ...],
    *,
    subject: str,
    title: str,
    message: str,
    suggestion: str,
) -> Finding:
    return Finding(
        subject=subject,
        title=title,
        message=message,
        witnesses=(Witness(names[0], part.shown), Witness(names[1], part.true)),
        suggestion=suggestion,
        first_step=part.first_step,
        last_step=part.last_step,
        count=part.count,
        certainty=part.certainty("float32 rounding of a batch's mean"),
    )


def _example(*, reached: float) -> RunHistory:
    return history(
        sample_weight__given_mean=[0.4] * 5,
        sample_weight__given_min=[0.1] * 5,
        sample_weight__given_max=[1.0] * 5,
        sample_weight__mean=[reached] * 5,
    )
