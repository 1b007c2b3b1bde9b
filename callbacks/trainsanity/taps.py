"""Taps: wrappers around one model's own methods that let probes write into the compiled step.

Keras calls `set_model` before it makes the train function. Whatever wraps `train_step`,
`compute_loss`, `compute_metrics` and the optimizer's `apply` at that moment is compiled into the
step. Only attributes of the instances are set, and all of them are taken away again at the end.
What is wrapped is always called with exactly the arguments that the caller gave.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from trainsanity import forward, later, optimizers, programs, replica_rows
from trainsanity.backends.backend import Element
from trainsanity.compiled import CompiledFunctions, TraceTime
from trainsanity.difference import elements_of
from trainsanity.first_layers import first_weighted_layers
from trainsanity.masking import mask_of, put_mask
from trainsanity.observed import Observed
from trainsanity.origin import is_of_keras
from trainsanity.outputs import outputs_of
from trainsanity.pace import Pace
from trainsanity.probes.probe import Columns, LayerCall, Step, Update
from trainsanity.programs import OF_A_GRAPH, ProgramPace, ShortGraphPace, ShortProgram
from trainsanity.reads import layer_that_runs, noted_reads
from trainsanity.recording import (
    Told,
    called_method,
    holds_numbers,
    measurable,
    noted_calls,
    tensors_of,
)
from trainsanity.tape import GAP, Tape
from trainsanity.wrappers import Wrappers

if TYPE_CHECKING:
    from trainsanity.boundary import Boundary
    from trainsanity.listeners import Listeners
    from trainsanity.run import Run

Function = Callable[..., Any]

OF_ONE_REPLICA = "it is measured on each replica, and the values do not add up to that of the batch"
IN_THE_UPDATE = "the gradients of the replicas are added up inside the optimizer's update"
PARTS = ("x", "y", "y_pred", "sample_weight")  # of `compute_loss` and `compute_metrics`
OF_UPDATES = (
    "gradient/norm",
    "gradient/nonfinite",
    "learning_rate/applied",
    "learning_rate/effective",
    "update/sampled_norm",
)


class Taps:
    """Installs the taps on the model of a run and removes them.

    Args:
        train_tape, test_tape: where rows of training and of test batches go.
    """

    def __init__(
        self,
        run: Run,
        listeners: Listeners,
        boundary: Boundary,
        functions: CompiledFunctions,
        train_tape: Tape,
        test_tape: Tape,
    ) -> None:
        self.run = run
        self._listeners = listeners
        self._boundary = boundary
        self._functions = functions
        self._tapes = {True: train_tape, False: test_tape}
        for tape in self._tapes.values():
            tape.make = self._rows_of
        self._wrappers = Wrappers()
        self._tapped: list[Any] = []  # optimizers
        self._local = threading.local()
        self._read: dict[int, Any] = {}  # variables, while the first step is traced
        self._made_in_trace: Any = None
        copies = self._observed if run.compiled_by_xla else None
        self._observers = Observed(run.model, lambda: self._step, boundary, copies)
        self.installed = False
        thins = self._may_thin() and not run.is_traced
        run.pace, run.test_pace = Pace(thins=thins), Pace(thins=thins)
        self._graph_pace: ShortGraphPace | None = None
        self._adds_as_keras = False  # whether Keras' own `compute_loss` adds the model's losses
        self._program_pace: ProgramPace | None = None
        if run.kind == "fit" and self._may_thin_in_graph():
            count, read = train_tape.count, run.backend.read
            run.pace = self._graph_pace = ShortGraphPace(read, count, self._short(OF_A_GRAPH))
        elif run.kind == "fit" and self._is_one_program:
            run.pace = self._program_pace = ProgramPace(self._short(), self._wait_for)

    def _may_thin(self) -> bool:
        """Whether evidence can be left out of a step."""
        several = int(self.run.model.steps_per_execution or 1) > 1 or self.run.replicas > 1
        return not (self._is_stateless or several)

    def _may_thin_in_graph(self) -> bool:
        run = self.run
        is_graph = run.is_traced and not run.compiled_by_xla
        return is_graph and self._may_thin() and run.backend.leaves_out()

    @property
    def _is_one_program(self) -> bool:
        """Whether no branch can leave anything out of the step: on JAX, and under XLA."""
        run = self.run
        if self._is_stateless:
            return run.is_traced
        return run.compiled_by_xla and run.is_traced and self._may_thin()

    def _short(self, share: float = 1.0) -> ShortProgram:
        guard = functools.partial(self._boundary.call, "short step")
        backend = self.run.backend
        return ShortProgram(
            self._short_of, backend.kind_of, guard, share=share, direct=backend.direct
        )

    def _short_of(self, program: Function, args: tuple[Any, ...]) -> Function | None:
        """The step without what need not be measured at every batch; None where a branch serves."""
        run = self.run
        if self._graph_pace and elements_of(run.model.trainable_weights) < programs.MANY_WEIGHTS:
            return None
        return run.backend.leaving_out(program, run.model, args, self._tapes[True].left_out)

    def _wait_for(self, args: tuple[Any, ...]) -> None:
        self.run.backend.wait_for(args, self._tapes[True].count)

    def _run_chosen(self, program: Function, args: tuple[Any, ...]) -> Any:
        pace = self._graph_pace or self._program_pace
        return pace.run(program, args) if self.installed and pace else program(*args)

    # installing

    def install(self) -> str | None:
        """Wraps the methods; the next train and test function that Keras makes contain the taps.

        Returns:
            Why it could not be done, or None.
        """
        model = self.run.model
        self.installed = True
        if self._is_stateless:
            model._metrics.extend(self._tapes.values())
            if not any(metric is self._tapes[True] for metric in model.metrics):
                self.remove()
                return "the model overrides `metrics`, so Keras on JAX carries no state of ours"
        self._wrappers.put(model, "train_step", self._around_step(model.train_step, training=True))
        self._wrappers.put(model, "test_step", self._around_step(model.test_step, training=False))
        self._wrappers.put(model, "compute_loss", self._after_loss(model.compute_loss))
        self._wrappers.put(model, "compute_metrics", self._after_metrics(model.compute_metrics))
        name = "_aggregate_additional_loss"  # not in Keras 3.7
        self._adds_as_keras = is_of_keras(type(model).compute_loss) and hasattr(model, name)
        if self._adds_as_keras:
            self._wrappers.put(model, name, self._before_adding(getattr(model, name)))
        backend = self.run.backend
        if self.run.compiled_by_xla:
            make = backend.around_making(model, self._catch_sample)
            if make is not None:
                self._wrappers.put(model, "_make_function", make)
        if self._graph_pace or self._program_pace:
            chosen = backend.choosing(model, self._run_chosen)
            if chosen is not None:
                self._wrappers.put(model, "_make_function", chosen)
        first = {id(layer) for _, layer in first_weighted_layers(model)}
        for layer in model._flatten_layers():
            is_source = isinstance(layer, (keras.layers.Embedding, keras.layers.Masking))
            if is_source or id(layer) in first:
                name = called_method(layer)
                self._wrappers.put(layer, name, self._before_call(layer, getattr(layer, name)))
        self.tap_optimizers()
        return None

    def renew(self) -> None:
        """Before Keras makes its functions: JAX knows a function that it has traced before, and
        would run what the model was compiled to then.
        """
        own = self.run.model.__dict__
        for name in ("train_step", "test_step"):
            if name in own:
                own[name] = functools.partial(own[name])

    def tap_optimizers(self) -> None:
        """Taps every optimizer the model holds that is not tapped yet."""
        if self.run.replicas > 1:
            for name in OF_UPDATES:
                self.run.not_testable[name] = IN_THE_UPDATE
            return
        for name, optimizer in optimizers.of_model(self.run.model).items():
            if any(optimizer is known for known in self._tapped):
                continue
            self._tapped.append(optimizer)
            if self._is_stateless and optimizers.working(optimizer) is not optimizer:
                tap = self._around_stateless_update(name, optimizer, optimizer.stateless_apply)
                self._wrappers.put(optimizer, "stateless_apply", tap)
            else:
                tap = self._around_update(name, optimizer, optimizer.apply)
                self._wrappers.put(optimizer, "apply", tap)

    def remove(self) -> None:
        """Puts everything back; safe to call twice."""
        if not self.installed:
            return
        self.installed = False
        self._wrappers.take_off(with_others=True)
        self._tapped.clear()
        model = self.run.model
        tapes = list(self._tapes.values())
        model._metrics[:] = [m for m in model._metrics if not any(m is t for t in tapes)]

    # while Keras traces a step

    @property
    def _is_stateless(self) -> bool:
        """Whether a step is a pure function, as on JAX: variables travel in its state."""
        return bool(self.run.backend.HAS_GRADIENT_BOUNDARY)

    @property
    def _step(self) -> Step | None:
        return getattr(self._local, "step", None)

    def _around_step(self, original: Function, *, training: bool) -> Function:
        def step(*args: Any, **kwargs: Any) -> Any:
            if not self.installed:
                return original(*args, **kwargs)
            x, y, weights = batch_parts(args[-1]) if args else (None, None, None)
            given = (x, y, self._boundary.call("taps", self.run.backend.unshared, weights))
            self._local.step = current = Step(training=training, given=given)
            pace = self._pace(current)
            current.full = pace.begin()
            current.waits = not current.full and self._tapes[training].is_in_memory
            self._boundary.call("taps", self._begin_trace, current)
            observed = self._observers
            observed.begin()
            try:
                with self._first_trace(training=training):
                    result = original(*args, **kwargs)
            finally:
                self._local.step = None
                observed.end()
            if self._is_stateless:
                return self._boundary.call(
                    "tape", self._end_stateless, current, result, default=result
                )
            if training and args and not self.run.compiled_by_xla:
                self._catch_sample(args[0])
            self._finish(current, result)
            pace.end()
            return result

        return step

    def _catch_sample(self, batch: Any) -> None:
        if not self.run.is_shared:
            self._boundary.call("sample", self.run.backend.catch_sample, self.run, batch)

    def _end_stateless(self, step: Step, result: Any) -> Any:
        """Writes the row into the state that the step gives back."""
        carried = self.run.model.metrics_variables
        if not _gives_state(result, len(carried)):
            self.run.not_testable["taps"] = (
                "the model's own step does not give the metrics' variables back as Keras' does"
            )
            self._boundary.off.add("tape")
            return result
        logs, state = result
        if isinstance(logs, Mapping):
            # A step that goes through all metrics by itself meets the tapes too.
            tapes = {tape.name for tape in self._tapes.values()}
            logs = {key: value for key, value in logs.items() if key not in tapes}
        mapping = [*zip(carried, state[-1], strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._finish(step, logs)
        new = [scope.get_current_value(variable) for variable in carried]
        return logs, type(state)([*state[:-1], new])

    def _first_trace(self, *, training: bool) -> AbstractContextManager[None]:
        """Notes what layers are told while the training step is traced for the first time."""
        if not training or "told_in_step" in self.run.shared:
            return nullcontext()
        return self._noted_trace()

    @contextmanager
    def _noted_trace(self) -> Iterator[None]:
        told: dict[int, list[Told]] = {}
        self.run.shared["told_in_step"] = told
        # JAX makes a gradient of zeros for a weight that had no part in the loss.
        reads = noted_reads(self._read, layer_that_runs) if self._is_stateless else nullcontext()
        with noted_calls(self.run.model, told), reads:
            yield

    @contextmanager
    def _first_loss(self, *, training: bool) -> Iterator[None]:
        """Notes which variables the loss reads when it is first computed."""
        if not training or "loss_reads" in self.run.shared:
            yield
            return
        read: dict[int, Any] = {}
        with noted_reads(read, layer_that_runs), self.run.backend.watched_reads(read):
            yield
        self.run.shared["loss_reads"] = read

    def _begin_trace(self, step: Step) -> None:
        run = self.run
        if not run.is_traced or not step.training:
            return
        run.shared["traces"] = run.shared.get("traces", 0) + 1
        if self._functions.traced is None:
            with run.backend.outside_trace():
                traced = TraceTime(run.model, with_flags=not self._is_stateless)
            self._functions.traced = traced if traced else None

    def _finish(self, step: Step, logs: Any) -> None:
        """The last of a step: what it shows in the logs, and the row.

        A step of the user's may show other numbers than Keras' metrics.
        """
        step.results = logs if isinstance(logs, Mapping) else {}
        self._say_what_was_not_asked(step)
        if step.waits:
            self._boundary.call("tape", self._write_later, step)
            return
        with self.run.backend.observing():
            self._collect(step, "trace_logs", step)
            if self.run.replicas > 1:
                self._finish_with_others(step)
                return
            self._collect(step, "trace_end", step)
            if (pace := self._decides(step)) is not None and not step.is_rehearsal:
                self._boundary.call("taps", self._take_turn, step, pace)
            tape = self._tapes[step.training]
            self._boundary.call("tape", tape.write, step.columns, step.in_turns)

    def _write_later(self, step: Step) -> None:
        self._collect(step, "trace_logs", step)
        self._collect(step, "trace_end", step)
        tape = self._tapes[step.training]
        with self.run.backend.observing():
            is_kept = later.keep(step, self.run.backend)
        if is_kept:
            tape.write_later(step)
        else:
            self._look(step)
            tape.write(step.columns)

    def _look(self, step: Step) -> None:
        """Now, at all that has waited so far; the step waits no more."""
        waiting, step.waiting = step.waiting, []
        step.waits = False
        seen: Any = None
        with self.run.backend.observing():
            for hook, asked_with in waiting:
                if asked_with is not seen:
                    seen = asked_with
                    self._boundary.call("taps", self._see, step, asked_with)
                self._collect(step, hook, step)

    def _rows_of(self, steps: list[Step]) -> Iterator[Columns]:
        """Of steps that have waited."""
        for run in later.alike(steps):
            rows = None
            if len(run) > later.FEW:
                rows = self._boundary.call("later", self._rows_of_alike, run)
            for place, step in enumerate(run):
                if rows is None:
                    self._look(step)
                    yield step.columns
                else:
                    yield rows[place]

    def _rows_of_alike(self, steps: list[Step]) -> list[dict[str, Any]]:
        with self.run.backend.observing():
            rows = later.columns_of(steps, self._look_at_many, self.run.backend)
            of_inputs = self._listeners.of_every_batch("trace_loss", only_inputs=True)
            for step, row in zip(steps, rows, strict=True):
                asked_with = next((a for hook, a in step.waiting if hook == "trace_loss"), None)
                if asked_with:
                    step.x = measurable(asked_with[0])
                    for method in of_inputs:
                        row.update(method(step))
        return rows

    def _look_at_many(self, step: Step) -> Columns:
        seen: Any = None
        for hook, asked_with in step.waiting:
            if asked_with is not seen:
                seen = asked_with
                self._see(step, asked_with)
            for method in self._listeners.of_every_batch(hook, only_inputs=False):
                step.columns.update(method(step))
        return step.columns

    def _decides(self, step: Step) -> ShortGraphPace | None:
        """Where the graph decides at each step whether all probes have their turn."""
        return self._graph_pace if step.training else None

    def _turn(self, step: Step, pace: ShortGraphPace) -> Any:
        """Whether they have, a bool tensor; always where the loss is not finite."""
        if step.turn is None:
            turn = pace.is_turn()
            bad = step.columns.get("loss/nonfinite")
            if bad is not None:
                turn = keras.ops.logical_or(turn, keras.ops.greater(bad, 0))
            step.turn = self._tapes[True].in_turn(turn, False)
        return step.turn

    def _take_turn(self, step: Step, pace: ShortGraphPace) -> None:
        """What was put off, in a branch of the graph."""
        names: list[str] = []

        def compute() -> Any:
            found: dict[str, Any] = {}
            for hook, evidence in step.put_off:
                for columns in self._listeners.ask(hook, evidence, every_batch=False):
                    found.update(columns)
            pace.take()
            names.extend(found)
            cells = [keras.ops.cast(value, "float32") for value in found.values()]
            return keras.ops.stack([keras.ops.reshape(cell, ()) for cell in cells] or [GAP])

        values = self.run.backend.when(self._turn(step, pace), compute, GAP)
        step.columns.update((name, Element(values, place)) for place, name in enumerate(names))

    def _finish_with_others(self, step: Step) -> None:
        """One row for what all replicas have measured of a batch; variables of ours are not the
        replicas'.
        """
        for name in replica_rows.left_out(list(step.columns)):
            self.run.not_testable[name] = OF_ONE_REPLICA

        def write(rows: list[Columns]) -> None:
            self._tapes[step.training].write(replica_rows.together(rows))

        def write_in_bounds(rows: list[Columns]) -> None:
            self._boundary.call("tape", write, rows)

        self.run.backend.with_all_replicas(write_in_bounds, step.columns)

    def _say_what_was_not_asked(self, step: Step) -> None:
        for part, absent in (("loss", "loss/recomputed"), ("metrics", "metrics")):
            if step.training and part not in step.asked:
                reason = f"the model's own train_step never calls compute_{part}"
                self.run.not_testable[absent] = reason

    def _leave_gradient(self, step: Step) -> None:
        """What was measured inside the gradient goes out with the tape; its tensors must not."""
        if step.training and self.run.shared["is_keras_step"]:  # there is one loss
            self.run.shared.setdefault("read_for_loss", frozenset(self._read))
        if in_stateless_scope():
            tape = self._tapes[step.training]
            self._boundary.call("tape", tape.flush, step.columns, step.in_turns)
        else:
            reason = "the model's own step calls compute_loss without the metrics' variables"
            self.run.not_testable["loss/differentiated"] = reason
        step.columns.clear()
        step.in_turns.clear()
        step.shared.clear()
        step.asked_with = []
        step.losses.clear()
        step.loss = None
        step.added.clear()
        # What came straight from the data was never part of the gradient.
        kinds = {type(keras.ops.convert_to_tensor(leaf)) for leaf in tensors_of(step.x)}
        step.calls[:] = [call for call in step.calls if type(call.inputs) in kinds]

    def _before_call(self, layer: Any, original: Function) -> Function:
        def call(*args: Any, **kwargs: Any) -> Any:
            step = self._step
            # In reverse an embedding gets no ids; while Keras infers shapes, nothing has a value.
            if step is not None and not kwargs.get("reverse") and not in_symbolic_scope():
                inputs = args[0] if args else kwargs.get("inputs")
                if holds_numbers(inputs):
                    step.calls.append(LayerCall(layer, inputs))
            return original(*args, **kwargs)

        return call

    def _after_loss(self, original: Function) -> Function:
        names = _positional(original)

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            step = self._step
            if step is None:
                return original(*args, **kwargs)
            if step.waiting:  # it computes another loss
                self._boundary.call("taps", self._look, step)
            step.losses.clear()
            step.added = []
            step.asked_with = []
            step.asked.add("loss")
            given = _given(names, args, kwargs)
            weights = self._boundary.call("taps", self._weights, given)
            with self._first_loss(training=step.training):
                loss = original(*args, **kwargs)
            with self.run.backend.observing():
                self._boundary.call("taps", self._note, step, given, weights)
                step.loss = self._boundary.call("taps", self._whole_loss, loss)
                if not self._adds_as_keras:
                    step.added = self._boundary.call("losses", self._added, default=[])
                self._collect(step, "trace_loss", step)
                self._boundary.call("taps", self._look_closer, step)
            if self._is_stateless:
                self._leave_gradient(step)
            return loss

        return compute_loss

    def _before_adding(self, original: Function) -> Function:
        """Regularizers would be called once more if the model were asked for its losses."""

        def aggregate(loss: Any) -> Any:
            step = self._step
            if step is not None:
                step.added.append(loss)
            return original(loss)

        return aggregate

    def _added(self) -> list[Any]:
        return list(self.run.model.losses)

    def _look_closer(self, step: Step) -> None:
        """A loss that is not finite gives all probes their turn, where asking costs no wait."""
        if step.waits:
            total = self.run.backend.total(step.loss)
            if math.isfinite(total):
                step.loss = total
                return
            self._look(step)
        bad = step.columns.get("loss/nonfinite")
        if not step.full and isinstance(bad, float) and bad > 0:
            step.full = True
            for columns in self._listeners.ask("trace_loss", step, every_batch=False):
                step.columns.update(columns)

    def _whole_loss(self, loss: Any) -> Any:
        """The loss to look at, before Keras divides it by the number of replicas."""
        seen = self._observed(loss)
        return seen if self.run.replicas == 1 else seen * self.run.replicas

    def _after_metrics(self, original: Function) -> Function:
        names = _positional(original)

        def compute_metrics(*args: Any, **kwargs: Any) -> Any:
            results = original(*args, **kwargs)
            step = self._step
            if step is not None:
                step.asked.add("metrics")
                with self.run.backend.observing():
                    self._boundary.call("taps", self._note, step, _given(names, args, kwargs))
                    self._collect(step, "trace_metrics", step)
            return results

        return compute_metrics

    def _note(self, step: Step, given: Mapping[str, Any], weights: Any = None) -> None:
        """What `compute_loss` or `compute_metrics` was given, by its parameters' names; `weights`
        as they were before.
        """
        seen = [given.get(name) for name in PARTS]
        if weights is not None:
            seen[3] = weights
        if step.asked_with and all(map(operator.is_, seen, step.asked_with)):
            return  # the metrics are given what the loss was given
        step.asked_with = seen
        if not step.waits:
            self._see(step, step.asked_with)

    def _see(self, step: Step, asked_with: list[Any]) -> None:
        """What the probes are to find in the step."""
        if not asked_with:
            return
        step.x, step.y, step.y_pred, step.sample_weight = asked_with
        step.x = measurable(step.x)
        step.y_pred = self._observed(step.y_pred)
        step.outputs = outputs_of(
            self.run.model, step.y, step.y_pred, step.sample_weight, step.given[2]
        )

    def _weights(self, given: Mapping[str, Any]) -> Any:
        return self.run.backend.unshared(given.get("sample_weight"))

    def _observed(self, structure: Any, apart: Function | None = None) -> Any:
        """The tensors for probes to look at; under XLA behind a barrier, or apart in another way,
        with their masks.
        """
        run = self.run
        if not run.compiled_by_xla:
            return structure
        leaves = keras.tree.flatten(structure)
        dense = [i for i, leaf in enumerate(leaves) if run.backend.is_dense(leaf)]
        apart = apart or run.backend.behind_barrier
        seen = apart([leaves[i] for i in dense]) if dense else []
        for i, tensor in zip(dense, seen, strict=True):
            tensor = run.backend.with_logits(tensor, leaves[i])
            put_mask(tensor, mask_of(leaves[i]))
            leaves[i] = tensor
        return keras.tree.pack_sequence_as(structure, leaves)

    # while the optimizer's update is traced

    def _around_update(self, name: str, optimizer: Any, original: Function) -> Function:
        def apply(*args: Any, **kwargs: Any) -> Any:
            step = self._step
            if step is None or not step.full:  # no probe of updates sees every batch
                return original(*args, **kwargs)
            update = self._boundary.call(
                "update", self._update, name, optimizer, step, args, kwargs
            )
            if update is None:
                return original(*args, **kwargs)
            self._before_update(step, update)
            with update.clipping_watched():
                result = original(*args, **kwargs)
            self._after_update(step, update)
            return result

        return apply

    def _around_stateless_update(self, name: str, optimizer: Any, original: Function) -> Function:
        """For an optimizer whose `apply` Keras does not call on JAX: loss scaling."""

        def stateless_apply(*args: Any, **kwargs: Any) -> Any:
            step = self._step
            if step is None:
                return original(*args, **kwargs)
            if len(args) != 3:
                return original(*args, **kwargs)
            state, grads, weights = args
            with _as_variables(optimizer, weights, state):
                update = self._boundary.call(
                    "update", self._update, name, optimizer, step, (grads,), {}
                )
                if update is not None:
                    self._before_update(step, update)
            result = original(*args, **kwargs)
            if update is not None:
                with _as_variables(optimizer, *result):
                    self._after_update(step, update)
            return result

        return stateless_apply

    def _update(
        self, name: str, optimizer: Any, step: Step, args: tuple[Any, ...], kwargs: Any
    ) -> Update | None:
        gradients = args[0] if args else kwargs["grads"]
        variables = args[1] if len(args) > 1 else kwargs.get("trainable_variables")
        if variables is None:
            variables = optimizer._trainable_variables
        if not isinstance(gradients, (list, tuple)) or not isinstance(variables, (list, tuple)):
            # Reading an iterator would take from it what the optimizer needs.
            raise TypeError("gradients and variables are no lists, so they cannot be looked at")
        if not optimizer.built:
            self._build(optimizer, variables, step)
        if not self._is_stateless:
            with self.run.backend.outside_trace(), forward.names_untouched():
                self._listeners.tell("on_optimizer", name, optimizer, variables)
        if step.is_rehearsal:
            return None
        given = list(gradients)
        seen = self._observed(given, self.run.backend.gradients_to_see)
        copies = functools.partial(self.run.backend.copies, xla=self.run.compiled_by_xla)
        update = Update(name, optimizer, given, seen, list(variables), step.shared, copies)
        if (pace := self._decides(step)) is not None:
            turn = self._turn(step, pace)
            update.in_turn = lambda compute: self.run.backend.when(turn, compute, GAP)
        return update

    def _build(self, optimizer: Any, variables: Sequence[Any], step: Step) -> None:
        """As `apply` would a moment later; what is measured before it needs the slots.

        Outside of the trace, where to make a variable takes TensorFlow many times as long; one is
        made in it all the same, so that it is traced as often as without us.
        """
        before = len(optimizer.variables)
        is_own = not is_of_keras(type(optimizer).build)  # it may use what is traced
        place = nullcontext() if is_own else self.run.backend.outside_trace()
        with place, keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(list(variables))
        optimizer.built = True
        if len(optimizer.variables) == before or not self.run.is_traced:
            return
        step.is_rehearsal = self.run.backend.TRACES_AGAIN
        if step.is_rehearsal and not is_own:
            with forward.names_untouched():
                self._made_in_trace = keras.Variable(0, trainable=False, name="trainsanity_made")

    def _before_update(self, step: Step, update: Update) -> None:
        began = time.perf_counter()
        with self.run.backend.observing():
            self._listeners.tell("trace_before_update", update)
        self._pace(step).spend(time.perf_counter() - began)

    def _after_update(self, step: Step, update: Update) -> None:
        with self.run.backend.observing():
            self._collect(step, "trace_after_update", update)
            self._collect(step, "trace_update", update)

    def _collect(self, step: Step, hook: str, evidence: Any) -> None:
        if step.waits:
            step.waiting.append((hook, step.asked_with))
            return
        if step.training and self._program_pace is not None:
            self._collect_in_turns(step, hook, evidence)
            return
        every_batch = None if step.full and not step.is_rehearsal else True
        if self._decides(step) is not None and hook != "trace_after_update":
            every_batch = True
            step.put_off.append((hook, step.as_it_is() if evidence is step else evidence))
        began = time.perf_counter()
        for columns in self._listeners.ask(hook, evidence, every_batch=every_batch):
            step.columns.update(columns)
        self._pace(step).spend(time.perf_counter() - began)

    def _collect_in_turns(self, step: Step, hook: str, evidence: Any) -> None:
        """Notes what a program for steps without a turn leaves out: columns, and what probes keep
        in variables.
        """
        for columns in self._listeners.ask(hook, evidence, every_batch=True):
            step.columns.update(columns)
        if step.is_rehearsal:
            return
        kept = self.run.kept if hook == "trace_end" else []
        with self.run.backend.rarely(kept, self._tapes[True].in_turn):
            for columns in self._listeners.ask(hook, evidence, every_batch=False):
                step.columns.update(columns)
                step.in_turns.update(columns)

    def _pace(self, step: Step) -> Pace:
        return self.run.pace if step.training else self.run.test_pace


def _positional(function: Function) -> list[str]:
    """Names of the parameters that take positional arguments; Keras' own for one that takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return list(PARTS)
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _given(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of their parameters. Not `Signature.bind`, which takes its time."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def batch_parts(data: Any) -> tuple[Any, Any, Any]:
    """Inputs, labels and sample weights of a batch; None for what it does not have."""
    if not isinstance(data, (tuple, list)):
        return (data, None, None)
    if len(data) > 3:
        return (None, None, None)
    parts = list(data) + [None] * (3 - len(data))
    return (parts[0], parts[1], parts[2])


def _gives_state(result: Any, carried: int) -> bool:
    """Whether a stateless step gives back logs and a state that ends with the metrics'
    variables.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        return False
    state = result[1]
    if type(state) not in (tuple, list) or not state or not isinstance(state[-1], (tuple, list)):
        return False
    return len(state[-1]) == carried


def _as_variables(optimizer: Any, weights: Any, state: Any) -> Any:
    """Within, the optimizer's and the model's variables have these values."""
    pairs = [*zip(optimizer._trainable_variables, weights, strict=True)]
    pairs += zip(optimizer.variables, state, strict=True)
    return keras.StatelessScope(state_mapping=pairs)
