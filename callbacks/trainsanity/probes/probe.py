"""What a probe is: code in the training process that measures signals or audits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from keras import ops

from trainsanity import optimizers

if TYPE_CHECKING:
    from trainsanity.run import Run
    from trainsanity.tape import TapeRows

# Scalar tensors by column name. A name without a leading "_" becomes a signal of that name; one
# with it is raw material for the probe's `on_rows`.
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
        place: its place among all outputs of the model.
        given_weight: the sample weight that came with the batch, or None.
        losses: its compiled losses: function, factor or None, and place among all in the order in
            which Keras calls them.
    """

    name: str
    y_true: Any
    y_pred: Any
    sample_weight: Any
    mask: Any
    place: int = 0
    given_weight: Any = None
    losses: list[tuple[Any, Any, int]] = field(default_factory=list)

    @property
    def loss(self) -> Any:
        """The compiled loss function; None where there is none, or more than one."""
        return self.losses[0][0] if len(self.losses) == 1 else None

    @property
    def loss_weight(self) -> Any:
        """The factor of the only loss, or None."""
        return self.losses[0][1] if len(self.losses) == 1 else None

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
        added: the model's own losses that are in it: by `add_loss` and of regularizers.
        losses: unreduced values of the compiled losses, in the order in which Keras called them.
        results: what the step returned, known in `trace_logs`: log key -> tensor.
        metric_values: id of a metric -> what its function returned.
        asked_with: the arguments of `compute_loss` or `compute_metrics`, as noted last.
        asked: which of "loss" and "metrics" the step has asked the model to compute.
        scope: of the trace in which it runs, as `Backend.trace_scope` gives it.
        full: whether all probes have their turn, not only those that see every batch.
        turn: the same, a bool tensor, where the graph itself decides; else None.
        is_rehearsal: whether this trace is thrown away, so that nothing is worth its time.
        put_off: hooks of probes that need not see every batch, with what they are given; called
            last of all, where it is their turn.
        waits: whether probes look at it later, with many others, from copies.
        waiting: their hooks, with what `asked_with` was then.
        copies: the tensors of a step that waits.
        columns: what was measured, by name: scalars.
        in_turns: columns of which a program may be made that leaves them out.
        shared: intermediate tensors that one probe computes and another uses.
    """

    training: bool
    scope: Any = None
    full: bool = True
    turn: Any = None
    is_rehearsal: bool = False
    put_off: list[tuple[str, Any]] = field(default_factory=list)
    waits: bool = False
    waiting: list[tuple[str, list[Any]]] = field(default_factory=list)
    copies: list[Any] = field(default_factory=list)
    given: tuple[Any, Any, Any] = (None, None, None)
    x: Any = None
    y: Any = None
    y_pred: Any = None
    sample_weight: Any = None
    calls: list[LayerCall] = field(default_factory=list)
    outputs: list[OutputEvidence] = field(default_factory=list)
    loss: Any = None
    added: list[Any] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    results: Mapping[str, Any] = field(default_factory=dict)
    metric_values: dict[int, Any] = field(default_factory=dict)
    asked_with: list[Any] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    columns: dict[str, Any] = field(default_factory=dict)
    in_turns: set[str] = field(default_factory=set)
    shared: dict[Any, Any] = field(default_factory=dict)

    def as_it_is(self) -> Step:
        """For a look later on; what the rest of the step notes is not in it."""
        return replace(self, calls=list(self.calls), losses=list(self.losses))


def _now(compute: Callable[[], Any]) -> Any:
    """As `operator.call`, which TorchDynamo cannot carry over a break of its graph."""
    return compute()


@dataclass
class Update:
    """One call of an optimizer while it is traced.

    Attributes:
        name: "" for the optimizer given to `compile`, else the attribute under which the model
            holds it.
        given: the gradients as the optimizer gets them; those to look at are others under XLA.
        gradients, variables: correspond 1:1; a gradient may be None.
        shared: the step's.
        copies: gives tensors of their own, whose use does not change how the update is compiled.
        in_turn: calls a function that returns a float32 vector where it is all probes' turn; else
            the vector has no meaning.
        updated: whether weights are updated at this step, a bool tensor; None: always.
        scale_before: what the gradients are multiplied with; None where they are not.
    """

    name: str
    optimizer: Any
    given: list[Any]
    gradients: list[Any]
    variables: list[Any]
    shared: dict[Any, Any]
    copies: Callable[[list[Any]], list[Any]] = list
    in_turn: Callable[[Callable[[], Any]], Any] = _now
    updated: Any = None
    scale_before: Any = None
    _entering: list[Any] | None = None

    def __post_init__(self) -> None:
        worker = optimizers.working(self.optimizer)
        conditions = []
        if worker is not self.optimizer:
            conditions.append(self.optimizer.check_finite(self.gradients))
            self.scale_before = ops.convert_to_tensor(self.optimizer.dynamic_scale)
        elif worker.loss_scale_factor is not None:
            self.scale_before = worker.loss_scale_factor
        steps = optimizers.accumulation(worker)
        if steps:
            conditions.append(ops.equal((worker._iterations + 1) % steps, 0))
        for condition in conditions:
            both = self.updated is not None
            self.updated = ops.logical_and(self.updated, condition) if both else condition

    @property
    def entering(self) -> list[Any] | None:
        """The gradients that are there as they enter the update: unscaled, accumulated, clipped;
        None if unknown.
        """
        return self._entering

    def prepare(self) -> None:
        """Before the update: computes `entering` where the optimizer does so inside a branch, out
        of reach.
        """
        worker = optimizers.working(self.optimizer)
        steps = optimizers.accumulation(worker)
        if self._entering is not None or (worker is self.optimizer and not steps):
            return
        pairs = [p for p in zip(self.gradients, self.variables, strict=True) if p[0] is not None]
        gradients, scale = [gradient for gradient, _ in pairs], self.scale_before
        if scale is not None:
            gradients = [ops.divide(g, ops.cast(scale, g.dtype)) for g in gradients]
        if steps:
            places = [worker._get_variable_index(variable) for _, variable in pairs]
            sums = [ops.convert_to_tensor(worker._accumulated_gradients[p]) for p in places]
            gradients = [(g + s) / steps for g, s in zip(gradients, sums, strict=True)]
        self._entering = worker._clip_gradients(gradients)

    def _unclipped(self, grads: Any, clipped: Any) -> list[Any] | None:
        """The gradients to look at where nothing was done to them; None where something was."""
        seen = {id(given): g for given, g in zip(self.given, self.gradients, strict=True)}
        is_same = clipped is grads and all(id(g) in seen for g in grads)
        return [seen[id(g)] for g in grads] if is_same else None

    @contextmanager
    def clipping_watched(self) -> Iterator[None]:
        """Within, what the optimizer's clipping returns becomes `entering`."""
        optimizer = self.optimizer
        if optimizers.working(optimizer) is not optimizer or optimizers.accumulation(optimizer):
            yield
            return
        original = optimizer._clip_gradients

        def clip(grads: Any) -> Any:
            clipped = original(grads)
            self._entering = self._unclipped(grads, clipped)
            if self._entering is None:
                # Clips copies once more: a look at what the update uses would keep the compiler
                # from joining clipping and update, and round otherwise.
                self._entering = list(original(self.copies(list(grads))))
            return clipped

        own = optimizer.__dict__
        had_own, before = "_clip_gradients" in own, own.get("_clip_gradients")
        own["_clip_gradients"] = clip
        try:
            yield
        finally:
            if had_own:
                own["_clip_gradients"] = before
            else:
                own.pop("_clip_gradients", None)


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
    # Whether its columns must come from every batch, as what adds up over an epoch does; the others
    # may get fewer turns where the step runs as Python code (`trainsanity.pace`).
    every_batch: bool = False
    # Whether `trace_loss`, its only hook within a step, looks at nothing but `x`, and as numbers on
    # the host; the others that see every batch may be shown many steps as one
    # (`trainsanity.later`), and must not ask for the value of a tensor.
    only_inputs: ClassVar[bool] = False
    # Whether it measures the data of a batch, of which each of several processes has a part.
    in_all_processes: ClassVar[bool] = False
    # Seconds, roughly, that `on_sample` or `on_released` takes where an eager pass of the sample
    # takes PASS_SECONDS of `trainsanity.sample_audits`: cheap audits come first, and one that is
    # too long for the time left waits. 0 for those that look at the one inference pass and do
    # nothing else.
    cost: ClassVar[float] = 0.0
    # Whether `on_sample` runs functions that Keras compiles; on JAX they give the variables' values
    # away.
    runs_compiled: ClassVar[bool] = False

    def __init__(self, run: Run) -> None:
        self.run = run

    # inside the step
    def trace_loss(self, step: Step) -> Columns:
        return {}

    def trace_loss_of_many(self, steps: Sequence[Step]) -> Mapping[str, Sequence[float]]:
        """What `trace_loss` finds in each of some steps whose inputs are alike in shape and dtype;
        where `only_inputs`.
        """
        each = [self.trace_loss(step) for step in steps]
        return {name: [columns[name] for columns in each] for name in each[0]}

    def trace_metrics(self, step: Step) -> Columns:
        return {}

    def trace_logs(self, step: Step) -> Columns:
        """When the step has returned: `step.results` is what it shows in the logs."""
        return {}

    def trace_before_update(self, update: Update) -> None:
        return None

    def trace_after_update(self, update: Update) -> Columns:
        """For what must be read now, and for little else: in a graph this runs at every batch."""
        return {}

    def trace_update(self, update: Update) -> Columns:
        """For what is made of the gradients: after the update, in a graph not before the step's
        end.
        """
        return {}

    def trace_end(self, step: Step) -> Columns:
        """Last of all; the only hook that may write to variables handed to `run.keep`."""
        return {}

    # around the step
    def see_step(self, step: Step) -> Columns:
        """In place of all `trace_*`, where no tap can be in the step: `step` has what was given and
        what was shown, and calls of layers that an input goes straight into. Of its outputs all is
        symbolic but the labels and the sample weights that came with them.
        """
        return {}

    # on the host
    def on_begin(self) -> None:
        """Before Keras makes its functions: the place to create variables and to hand in audits."""

    def on_optimizer(self, name: str, optimizer: Any, variables: Sequence[Any]) -> None:
        """An optimizer of the model that is built, once or more often: the place to create
        variables for it. Where one is built by its first update, that is while a step is traced.
        """

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
        """Every second or two, and at epoch ends: for readings that need no step of their own."""

    def on_epoch_begin(self, epoch: int) -> None:
        return None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        return None

    def on_epoch_sample(self, epoch: int) -> None:
        """Before `on_epoch_end`, at epochs for which the audits have time: what runs the model on
        the sample again and again, or needs a step to have run. There may be no sample.
        """

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
