"""Labels and outputs of different rank blow the loss up from N to N×N elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import (
    finding_of,
    maps,
    merged,
    number,
    parting,
    quantities_of,
    real,
    relative_gap,
    share,
    text,
    two_numbers,
)
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit

Shape = list[int | None]

# Keras' losses that compare numbers with numbers, element by element, by all their names.
OF_NUMBERS = {
    "mse",
    "mean_squared_error",
    "mae",
    "mean_absolute_error",
    "mape",
    "mean_absolute_percentage_error",
    "msle",
    "mean_squared_logarithmic_error",
    "huber",
    "huber_loss",
    "log_cosh",
    "logcosh",
}


@dataclass(frozen=True)
class LossBroadcast(Rule):
    """The loss compares every label with every output instead of each with its own.

    Compares: the elements of the unreduced loss with the most that an element-wise loss can have:
    the elements of the labels or of the outputs, whichever are more. Where a loss of your own
    takes a mean before that: its value for the captured rows with the mean of its values for each
    row alone, which agrees once the labels have the shape of the outputs. And the one number of a
    label with the several probabilities of a softmax that a loss for numbers compares it with.

    Why: labels of shape (N,) against outputs of shape (N, 1) broadcast to (N, N) without an error.
    The loss then compares each label with every output, and the model learns the mean.

    Try: give labels and outputs one shape, e.g. `y[:, None]`, or squeeze the output.

    Source: TensorFlow issues 30040 and 35833. Both are counts, so nothing is allowed between them.
    Broadcasting squares their number exactly. Other counts may come from a loss that compares pairs
    of samples on purpose, and so may squares where labels and outputs have one shape: advice.
    """

    id = "loss-broadcast"
    severity = Severity.CRITICAL
    needs = ("loss/elements", "loss/expected_elements")

    rounding: float = 1e-4  # share of the loss by which two ways to compute it may differ

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(elements=1024.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(elements=32.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        yield from merged(_class_numbers(run))
        hidden = merged(self._hidden(run))
        yield from hidden
        if hidden:
            return
        quantities_of(run, "loss", "elements", "expected_elements")
        rows = run.rows("loss/elements", "loss/expected_elements")
        elements, expected = rows["loss/elements"], rows["loss/expected_elements"]
        part = parting(rows, elements, expected, 0.0, where=elements > expected)
        if part is None:
            return
        is_square = part.shown == part.true**2 and not _are_of_one_shape(run)
        yield Finding(
            subject="loss",
            title=f"The loss has {number(part.shown)} elements for {number(part.true)}",
            message=f"The loss of one batch has {number(part.shown)} elements, while labels and "
            f"outputs have at most {number(part.true)}. "
            f"It has been so since step {part.first_step:,}."
            f"{_shapes(run)} Each label is compared with the outputs of other samples.",
            witnesses=(
                Witness("loss/elements", part.shown, "elements"),
                Witness("loss/expected_elements", part.true, "elements"),
            ),
            suggestion="Give the labels the shape of the outputs, e.g. y[:, None] for outputs of "
            "shape (N, 1), or align ranks in your loss before you subtract.",
            first_step=part.first_step,
            last_step=part.last_step,
            count=part.count,
            severity=None if is_square else Severity.ADVICE,
            certainty="Both are counts, so nothing is allowed between them."
            + " Each is compared with each: their number squared." * is_square,
        )

    def _hidden(self, run: RunView) -> Iterator[Finding]:
        """Broadcasting that a mean inside of the loss hides."""
        for audit in run.new_audits("loss_ranks") if run.has_audit("loss_ranks") else []:
            for row in maps(audit.facts, "outputs"):
                given, same, alone = (real(row, k) for k in ("as_given", "same_shape", "alone"))
                if given is None or same is None or alone is None:
                    continue
                mixed = relative_gap(given, alone) > self.rounding
                if mixed and relative_gap(same, alone) <= self.rounding:
                    yield self._of_rows(audit, row, given, alone)

    def _of_rows(self, audit: Audit, row: Mapping[str, Any], given: float, alone: float) -> Finding:
        shown, true = two_numbers(given, alone)
        of = f" of {row['name']}" if text(row, "name") else ""
        labels, outputs = _shape(row["label_shape"]), _shape(row["shape"])
        return finding_of(
            audit,
            f"loss{of}",
            f"The loss{of} compares labels with outputs of other samples",
            f"For the captured rows {text(row, 'loss') or 'the loss'} is {shown}; the mean over "
            f"the same rows alone is {true}. The labels{of} have shape {labels}, the outputs "
            f"{outputs}. With labels of shape {outputs} both agree: each label is compared with "
            "every output before the loss takes its mean.",
            (Witness("loss of the rows together", given), Witness("loss of each alone", alone)),
            "Give the labels the shape of the outputs, e.g. y[:, None] for outputs of shape "
            "(N, 1), or align ranks in your loss before you subtract.",
            certainty=f"Up to {share(self.rounding)} of the loss would be rounding.",
        )


def _class_numbers(run: RunView) -> Iterator[Finding]:
    """Class numbers that a loss for numbers compares with the probability of every class."""
    for audit in run.new_audits("columns") if run.has_audit("columns") else []:
        for output in maps(audit.facts, "outputs"):
            shape, labels = _known(output.get("shape")), _known(output.get("label_shape"))
            loss, name = text(output, "loss") or "", text(output, "name")
            is_softmax = text(output, "activation") == "softmax" and loss in OF_NUMBERS
            if not is_softmax or not shape or not labels or (shape[-1] or 1) < 2:
                continue
            if labels == [*shape[:-1], 1]:
                of = f" of {name}" if name else ""
                yield finding_of(
                    audit,
                    f"labels{of}",
                    f"One label is compared with each of {shape[-1]} probabilities",
                    f"The labels{of} have shape {_shape(labels)}, the outputs {_shape(shape)} and "
                    f"a softmax. {loss} compares the one number of each label with the probability "
                    "of every class: labels that are class numbers are taken for values.",
                    (
                        Witness("numbers of a label", 1.0),
                        Witness("numbers of an output", float(shape[-1] or 0)),
                    ),
                    "Compile sparse_categorical_crossentropy for class numbers, or give one-hot "
                    "labels: keras.utils.to_categorical(y).",
                    severity=Severity.WARNING,
                    certainty="Shapes are compared exactly.",
                )


def _of_outputs(run: RunView) -> list[tuple[str | None, Shape | None, Shape | None]]:
    """Name, shape and shape of the labels of each output; None where a shape is unknown."""
    outputs = maps(run.audit("columns").facts, "outputs") if run.has_audit("columns") else []
    return [
        (text(o, "name"), _known(o.get("shape")), _known(o.get("label_shape"))) for o in outputs
    ]


def _known(shape: Any) -> Shape | None:
    return list(shape) if isinstance(shape, (list, tuple)) else None


def _are_of_one_shape(run: RunView) -> bool:
    """Whether the labels of every output are known to have its shape, batches aside: only the loss
    itself can broadcast them then.
    """
    outputs = _of_outputs(run)
    return bool(outputs) and all(
        shape is not None
        and labels is not None
        and len(shape) == len(labels)
        and shape[1:] == labels[1:]
        for _, shape, labels in outputs
    )


def _shapes(run: RunView) -> str:
    """Shapes of the first output whose labels have another rank, in words; empty if unknown."""
    for name, shape, labels in _of_outputs(run):
        if shape is not None and labels is not None and len(shape) != len(labels):
            of = f" of {name}" if name else ""
            return f" The labels{of} have shape {_shape(labels)}, the outputs {_shape(shape)}."
    return ""


def _shape(dimensions: Iterable[int | None]) -> str:
    sizes = ["N" if size is None else str(size) for size in dimensions]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def _example(*, elements: float) -> RunHistory:
    outputs = [{"name": "", "shape": [None, 1], "label_shape": [None]}]
    return history(
        audits=[("columns", 1, {"outputs": outputs})],
        loss__elements=[elements] * 3,
        loss__expected_elements=[32.0] * 3,
    )
