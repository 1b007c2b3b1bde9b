"""Taps: wrappers around one model's own methods that let probes write into the compiled step.

Keras calls `set_model` before it makes the train function. Whatever wraps `train_step`,
`compute_loss`,
`compute_metrics` and the optimizer's `apply` at that moment is compiled into the step. Only
attributes of the
instances are set, and all of them are taken away again at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import keras

from trainsanity.first_layers import first_weighted_layers
from trainsanity.masking import mask_of, put_mask
from trainsanity.outputs import outputs_of
from trainsanity.probes.probe import LayerCall, Probe, Step, Update
from trainsanity.recording import noted_calls
from trainsanity.tape import Tape

if TYPE_CHECKING:
    from trainsanity.boundary import Boundary
    from trainsanity.run import Run


class Taps:
    """Installs the taps on the model of a run and removes them."""

    def __init__(
        self, run: Run, probes: list[Probe], boundary: Boundary, train_tape: Tape, test_tape: Tape
    ) -> None:
        self.run = run
        self._probes = probes
        self._boundary = boundary
        self._tapes = {True: train_tape, False: test_tape}
        self._replaced: list[tuple[Any, str, bool, Any]] = []
        self._local = threading.local()
        self.installed = False

    # installing

    def install(self) -> None:
        """Wraps the methods; the next train and test function that Keras makes contain the taps."""
        model = self.run.model
        model._metrics.extend(self._tapes.values())
        self._replace(model, "train_step", self._around_step(model.train_step, training=True))
        self._replace(model, "test_step", self._around_step(model.test_step, training=False))
        self._replace(model, "compute_loss", self._after_loss(model.compute_loss))
        self._replace(model, "compute_metrics", self._after_metrics(model.compute_metrics))
        if self.run.optimizer is not None:
            optimizer = self.run.optimizer
            self._replace(optimizer, "apply", self._around_update(optimizer, optimizer.apply))
            if not branches_in_update(optimizer):
                self._replace(
                    optimizer, "_clip_gradients", self._after_clipping(optimizer._clip_gradients)
                )
        first = {id(layer) for _, layer in first_weighted_layers(model)}
        for layer in model._flatten_layers():
            is_source = isinstance(layer, (keras.layers.Embedding, keras.layers.Masking))
            if is_source or id(layer) in first:
                self._replace(layer, "call", self._before_call(layer, layer.call))
        model.train_function = None
        model.test_function = None
        self.installed = True

    def remove(self) -> None:
        """Puts everything back; safe to call twice."""
        if not self.installed:
            return
        self.installed = False
        for owner, name, had_own, original in reversed(self._replaced):
            if had_own:
                owner.__dict__[name] = original
            else:
                owner.__dict__.pop(name, None)
        self._replaced.clear()
        model = self.run.model
        tapes = list(self._tapes.values())
        model._metrics[:] = [m for m in model._metrics if not any(m is t for t in tapes)]
        # They hold compiled taps; Keras makes new ones when they are needed again.
        model.train_function = None
        model.test_function = None

    def _replace(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        own = owner.__dict__
        self._replaced.append((owner, name, name in own, own.get(name)))
        # Past Keras' __setattr__, which would track or refuse what it is given.
        own[name] = replacement

    # while Keras traces a step

    @property
    def _step(self) -> Step | None:
        return getattr(self._local, "step", None)

    def _around_step(self, original: Callable[..., Any], *, training: bool) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            self._local.step = current = Step(training=training, given=batch_parts(args[-1]))
            if training:
                self._note_trace(args[-1])
            try:
                with self._first_trace(training=training):
                    result = original(*args)
            finally:
                self._local.step = None
            if not self._finishes_with_metrics:
                if training:
                    self._boundary.call("sample", self.run.backend.catch_sample, self.run, args)
                self._finish(current)
            return result

        return step

    def _first_trace(self, *, training: bool) -> AbstractContextManager[None]:
        """Notes which layers run while the training step is traced for the first time."""
        if not training or "called_in_step" in self.run.shared:
            return nullcontext()
        called: set[int] = set()
        self.run.shared["called_in_step"] = called
        return noted_calls(self.run.model, called)

    @property
    def _finishes_with_metrics(self) -> bool:
        """On JAX a step is a pure function: only inside `compute_metrics` may variables be
        written.
        """
        return bool(self.run.backend.HAS_GRADIENT_BOUNDARY)

    def _finish(self, step: Step) -> None:
        with self.run.backend.no_gradient():
            self._collect(step, "trace_end", step)
            self._boundary.call("tape", self._tapes[step.training].write, step.columns)

    def _leave_gradient(self, step: Step) -> None:
        """What was measured inside the gradient goes out with the tape; its tensors must not."""
        self._boundary.call("tape", self._tapes[step.training].flush, step.columns)
        step.columns.clear()
        step.shared.clear()
        step.loss = None

    def _before_call(self, layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self._step is not None:
                self._step.calls.append(LayerCall(layer, inputs))
            return original(inputs, *args, **kwargs)

        return call

    def _after_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compute_loss(
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            loss = original(x, y, y_pred, sample_weight, *args, **kwargs)
            step = self._step
            if step is not None:
                y_pred, loss_seen = self._observed((y_pred, loss))
                step.x, step.y, step.y_pred, step.sample_weight = x, y, y_pred, sample_weight
                step.loss = loss_seen
                with self.run.backend.no_gradient():
                    self._boundary.call("outputs", self._find_outputs, step)
                    self._collect(step, "trace_loss", step)
                if self._finishes_with_metrics:
                    self._leave_gradient(step)
            return loss

        return compute_loss

    def _after_metrics(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compute_metrics(
            x: Any, y: Any, y_pred: Any, sample_weight: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            results = original(x, y, y_pred, sample_weight, *args, **kwargs)
            step = self._step
            if step is not None:
                y_pred = self._observed(y_pred)
                step.x, step.y, step.y_pred, step.sample_weight = x, y, y_pred, sample_weight
                step.results = results if isinstance(results, dict) else {}
                with self.run.backend.no_gradient():
                    self._boundary.call("outputs", self._find_outputs, step)
                    self._collect(step, "trace_metrics", step)
                if self._finishes_with_metrics:
                    self._finish(step)
            return results

        return compute_metrics

    def _observed(self, structure: Any) -> Any:
        """The tensors for probes to look at; under XLA behind a barrier, with their masks."""
        run = self.run
        if not run.compiled_by_xla:
            return structure
        leaves = keras.tree.flatten(structure)
        dense = [i for i, leaf in enumerate(leaves) if run.backend.is_dense(leaf)]
        seen = run.backend.behind_barrier([leaves[i] for i in dense]) if dense else []
        for i, tensor in zip(dense, seen, strict=True):
            put_mask(tensor, mask_of(leaves[i]))
            leaves[i] = tensor
        return keras.tree.pack_sequence_as(structure, leaves)

    def _find_outputs(self, step: Step) -> None:
        step.outputs = outputs_of(
            self.run.model, step.y, step.y_pred, step.sample_weight, step.given[2]
        )

    def _around_update(self, optimizer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(grads: Any, trainable_variables: Any = None) -> Any:
            step = self._step
            if step is None:
                return original(grads, trainable_variables)
            grads = list(grads)
            variables = trainable_variables
            if variables is None:
                variables = optimizer._trainable_variables
            variables = list(variables)
            update = Update(optimizer, self._observed(grads), variables, step.shared)
            with self.run.backend.no_gradient():
                for probe in self._probes:
                    self._boundary.call(probe.name, probe.trace_before_update, update)
            result = original(grads, trainable_variables)
            with self.run.backend.no_gradient():
                self._collect(step, "trace_after_update", update)
            return result

        return apply

    def _after_clipping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_gradients(grads: Any) -> Any:
            clipped = original(grads)
            if self._step is not None:
                self._boundary.call("clipping", self._clip_again, original, list(grads))
            return clipped

        return clip_gradients

    def _clip_again(self, clip: Callable[..., Any], grads: list[Any]) -> None:
        """Clips copies: a look at the clipped gradients themselves would keep the compiler from
        joining the clipping with the update, and round otherwise.
        """
        step = self._step
        assert step is not None
        copies = self.run.backend.copies(grads, xla=self.run.compiled_by_xla)
        step.shared["clipped"] = list(clip(copies))

    def _note_trace(self, data: Any) -> None:
        shared = self.run.shared
        shared["traced"] = True  # by the execution that is running
        shared.setdefault("signatures", set()).add(_signature(data))

    def _collect(self, step: Step, hook: str, evidence: Any) -> None:
        for probe in self._probes:
            columns = self._boundary.call(probe.name, getattr(probe, hook), evidence, default={})
            step.columns.update(columns)


def batch_parts(data: Any) -> tuple[Any, Any, Any]:
    """Inputs, labels and sample weights of a batch; None for what it does not have."""
    if not isinstance(data, (tuple, list)):
        return (data, None, None)
    if len(data) > 3:
        return (None, None, None)
    parts = list(data) + [None] * (3 - len(data))
    return (parts[0], parts[1], parts[2])


def branches_in_update(optimizer: Any) -> bool:
    """Whether the update runs in a branch of the graph, whose tensors cannot be used outside."""
    return bool(getattr(optimizer, "gradient_accumulation_steps", None)) or hasattr(
        optimizer, "inner_optimizer"
    )


def _signature(data: Any) -> str:
    """Structure, shapes and dtypes of a batch."""
    shapes = keras.tree.map_structure(
        lambda leaf: f"{getattr(leaf, 'dtype', type(leaf))} {getattr(leaf, 'shape', '')}", data
    )
    return str(shapes)
