"""Labels and outputs of different rank blow the loss up from N to N×N elements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainsanity.rules.comparison import maps, number, parting, quantities_of, text
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness


@dataclass(frozen=True)
class LossBroadcast(Rule):
    """The loss compares every label with every output instead of each with its own.

    Compares: the elements of the unreduced loss with the most that an element-wise loss can have:
    the elements of the labels or of the outputs, whichever are more.

    Why: labels of shape (N,) against outputs of shape (N, 1) broadcast to (N, N) without an error.
    The loss then compares each label with every output, and the model learns the mean.

    Try: give labels and outputs one shape, e.g. `y[:, None]`, or squeeze the output.

    Source: TensorFlow issues 30040 and 35833. Both are counts, so nothing is allowed between them.
    Broadcasting squares their number exactly; other counts may come from a loss that compares pairs
    of samples on purpose, so they are advice.
    """

    id = "loss-broadcast"
    severity = Severity.CRITICAL
    needs = ("loss/elements", "loss/expected_elements")

    @staticmethod
    def fires_on() -> RunHistory:
        return _example(elements=1024.0)

    @staticmethod
    def quiet_on() -> RunHistory:
        return _example(elements=32.0)

    def check(self, run: RunView) -> Iterable[Finding]:
        quantities_of(run, "loss", "elements", "expected_elements")
        rows = run.rows("loss/elements", "loss/expected_elements")
        elements, expected = rows["loss/elements"], rows["loss/expected_elements"]
        part = parting(rows, elements, expected, 0.0, where=elements > expected)
        if part is None:
            return
        is_square = part.shown == part.true**2
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


def _shapes(run: RunView) -> str:
    """Shapes of the first output whose labels have another rank, in words; empty if unknown."""
    outputs = maps(run.audit("columns").facts, "outputs") if run.has_audit("columns") else []
    for output in outputs:
        shape, labels = output.get("shape"), output.get("label_shape")
        if not isinstance(shape, (list, tuple)) or not isinstance(labels, (list, tuple)):
            continue
        if len(shape) != len(labels):
            of = f" of {output['name']}" if text(output, "name") else ""
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
