"""What a probe is: code in the training process that measures signals or audits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from trainsanity.run import Run
    from trainsanity.tape import TapeRows

# Scalar tensors by column name. A name without a leading "_" becomes a signal of that name; one
# with it is
# raw material for the probe's `on_rows`.
Columns = Mapping[str, Any]


@dataclass
class LayerCall:
    """A call of a layer seen while the step was traced: the layer and its first argument."""

    layer: Any
    inputs: Any


@dataclass
class OutputEvidence:
    """One output of the model inside the step.

    Attributes:
        name: the output's name; "" where the model has one output.
        y_true, y_pred: tensors of shape (batch, ...).
        sample_weight: (batch,), (batch, 1) or (batch, time), or None.
        mask: the mask that Keras carries on `y_pred`, (batch, time) bool, or None.
        loss: the compiled loss function of this output, or None; `loss_weight` its factor, or None.
        given_weight: the sample weight that came with the batch, or None.
    """

    name: str
    y_true: Any
    y_pred: Any
    sample_weight: Any
    mask: Any
    loss: Any = None
    loss_weight: Any = None
    given_weight: Any = None

    def quantity(self, word: str) -> str:
        return f"{word}:{self.name}" if self.name else word


@dataclass
class Step:
    """One step (a batch) while it is traced; probes leave columns in it.

    Attributes:
        training: False in `evaluate` and validation.
        given: the batch `(x, y, sample_weight)` as `train_step` receives it.
        x, y, y_pred, sample_weight: as Keras passes them to `compute_loss`.
        calls: calls of embedding and masking layers, and of the first layers with weights, in the
            forward pass.
        outputs: one entry per output that has a label.
        loss: what `compute_loss` returned.
        results: what `compute_metrics` returned: log key -> tensor.
        shared: intermediate tensors that one probe computes and another uses.
    """

    training: bool
    given: tuple[Any, Any, Any] = (None, None, None)
    x: Any = None
    y: Any = None
    y_pred: Any = None
    sample_weight: Any = None
    calls: list[LayerCall] = field(default_factory=list)
    outputs: list[OutputEvidence] = field(default_factory=list)
    loss: Any = None
    results: Mapping[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)


@dataclass
class Update:
    """One call of the optimizer while it is traced.

    `gradients` and `variables` correspond 1:1; a gradient may be None. `shared` is the step's.
    """

    optimizer: Any
    gradients: list[Any]
    variables: list[Any]
    shared: dict[Any, Any]


class Probe:
    """Base of all probes; one file holds one probe, found by walking the folder.

    Hooks named `trace_*` run while Keras traces the step and return scalar tensors; they must use
    only
    operations that cannot fail at run time and change no state of the model. All other hooks run on
    the host.
    A probe that raises is switched off, with its traceback in the log and in an audit; training
    goes on.
    """

    name: ClassVar[str]
    # The audit that `on_sample` makes, where its name is not the probe's.
    audit: ClassVar[str | None] = None
    # Seconds, roughly, that `on_sample` takes: cheap audits come first.
    cost: ClassVar[float] = 0.0

    def __init__(self, run: Run) -> None:
        self.run = run

    # inside the step
    def trace_loss(self, step: Step) -> Columns:
        return {}

    def trace_metrics(self, step: Step) -> Columns:
        return {}

    def trace_before_update(self, update: Update) -> None:
        return None

    def trace_after_update(self, update: Update) -> Columns:
        return {}

    def trace_end(self, step: Step) -> Columns:
        """Last of all; the only hook that may write to variables handed to `run.keep`."""
        return {}

    # on the host
    def on_begin(self) -> None:
        """Before Keras makes its functions: the place to create variables and to hand in audits."""

    def on_sample(self) -> None:
        """Once, when `run.sample` holds rows of the data and the model is whole: the time for
        audits.
        """

    def on_rows(self, rows: TapeRows) -> Columns:
        """New rows of training batches; returns further columns (n,) made of them, by
        signal name.
        """
        return {}

    def on_test_rows(self, rows: TapeRows) -> Columns:
        """The same for test batches: validation inside `fit`, or a stand-alone `evaluate`."""
        return {}

    def before_step(self, step: int) -> None:
        """On the host, right before Keras runs `step` (the first of several with
        steps_per_execution).
        """

    def after_step(self, step: int) -> None:
        """On the host, right after Keras ran all steps up to `step`."""

    def on_sample_time(self) -> None:
        """About once a second, and at epoch ends: for readings that need no step of their own."""

    def on_epoch_begin(self, epoch: int) -> None:
        return None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        return None

    def on_test_begin(self) -> None:
        return None

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        return None

    def on_released(self) -> None:
        """After `on_end`, when the taps are out of the model: for audits that use its own
        methods.
        """

    def on_closed(self) -> None:
        """The run is over, also where it failed: the time to put back what was replaced."""

    def on_end(self) -> None:
        return None
