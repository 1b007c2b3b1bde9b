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
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from trainsanity import later, replica_rows
from trainsanity.compiled import CompiledFunctions, TraceTime
from trainsanity.first_layers import first_weighted_layers
from trainsanity.observed import Observed, seen_of
from trainsanity.origin import is_of_keras
from trainsanity.outputs import outputs_of
from trainsanity.probes.probe import Columns, LayerCall, Step
from trainsanity.reads import layer_that_runs, noted_reads
from trainsanity.recording import (
    Told,
    called_method,
    holds_numbers,
    measurable,
    noted_calls,
    tensors_of,
)
from trainsanity.tape import Tape, carrier_among
from trainsanity.turns import Turns
from trainsanity.update_taps import UpdateTaps
from trainsanity.wrappers import Function, Wrappers

if TYPE_CHECKING:
    from trainsanity.boundary import Boundary
    from trainsanity.listeners import Listeners
    from trainsanity.run import Run

OF_ONE_REPLICA = "it is measured on each replica, and the values do not add up to that of the batch"
PARTS = ("x", "y", "y_pred", "sample_weight")  # of `compute_loss` and `compute_metrics`


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
        self._local = threading.local()
        self._read: dict[int, Any] = {}  # variables, while the first step is traced
        self._turns = Turns(run, listeners, boundary, train_tape)
        self._updates = UpdateTaps(
            run, listeners, boundary, self._turns, self._wrappers, lambda: self._step
        )
        copies = functools.partial(seen_of, run=run) if run.compiled_by_xla else None
        self._observers = Observed(run.model, lambda: self._step, boundary, copies)
        self.installed = False
        self._carrier: Any = None  # the metric that carries the tapes, where Keras must
        self._adds_as_keras = False  # whether Keras' own `compute_loss` adds the model's losses

    def _run_chosen(self, program: Function, args: tuple[Any, ...]) -> Any:
        return self._turns.run(program, args) if self.installed else program(*args)

    # installing

    def install(self) -> str | None:
        """Wraps the methods; the next train and test function that Keras makes contain the taps.

        Returns:
            Why it could not be done, or None.
        """
        model = self.run.model
        self.installed = True
        if self.run.is_stateless and not self._enter_carrier():
            self.installed = False
            return "the model shows no metrics, with which alone Keras on JAX carries state of ours"
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
        if self._turns.may_choose:
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

    def _enter_carrier(self) -> bool:
        """Puts the tapes into one of the model's metrics; False where there is none."""
        self._carrier = carrier = carrier_among(self.run.model.metrics)
        if carrier is None:
            return False
        carrier._metrics.extend(self._tapes.values())
        self._wrappers.put(carrier, "reset_state", self._sparing_tapes(carrier.reset_state))
        return True

    def _leave_carrier(self) -> None:
        if self._carrier is not None:
            tapes, within = list(self._tapes.values()), self._carrier._metrics
            within[:] = [m for m in within if not any(m is tape for tape in tapes)]
            self._carrier = None

    def _sparing_tapes(self, original: Function) -> Function:
        """Keras resets a metric by zeros for all that it carries."""

        def reset_state(*args: Any, **kwargs: Any) -> Any:
            variables = [v for tape in self._tapes.values() for v in tape.variables]
            before = [v.value for v in variables]
            result = original(*args, **kwargs)
            for variable, value in zip(variables, before, strict=True):
                if variable.value is not value:
                    variable.assign(value)
            return result

        return reset_state

    def renew(self) -> None:
        """Before Keras makes its functions: JAX knows a function that it has traced before, and
        would run what the model was compiled to then.
        """
        for name in ("train_step", "test_step"):
            self._wrappers.renew(self.run.model, name)
        if self._carrier is not None and not any(
            m is self._carrier for m in self.run.model.metrics
        ):
            self._leave_carrier()  # compiled anew, which makes other metrics
            self._enter_carrier()

    def tap_optimizers(self) -> None:
        """Taps every optimizer the model holds that is not tapped yet."""
        self._updates.tap_all()

    def remove(self) -> None:
        """Puts everything back; safe to call twice."""
        if not self.installed:
            return
        self.installed = False
        self._wrappers.take_off()
        self._updates.forget()
        self._leave_carrier()

    # while Keras traces a step

    @property
    def _step(self) -> Step | None:
        return getattr(self._local, "step", None)

    def _around_step(self, original: Function, *, training: bool) -> Function:
        def step(*args: Any, **kwargs: Any) -> Any:
            if not self.installed:
                return original(*args, **kwargs)
            x, y, weights = batch_parts(args[-1]) if args else (None, None, None)
            if weights is not None:
                weights = self._boundary.call("taps", self.run.backend.unshared, weights)
            scope = self.run.backend.trace_scope()
            current = Step(training=training, scope=scope, given=(x, y, weights))
            self._local.step = current
            self._turns.begin(current)
            if self.run.is_traced:
                current.is_rehearsal = self._boundary.call(
                    "taps", self._updates.will_be_traced_again, current, default=False
                )
                self._boundary.call("taps", self._begin_trace, current)
            current.waits = not current.full and self._tapes[training].is_in_memory
            observed = self._observers
            observed.begin()
            try:
                with self._first_trace(training=training):
                    result = original(*args, **kwargs)
            finally:
                self._local.step = None
                observed.end()
            if self.run.is_stateless:
                return self._boundary.call(
                    "tape", self._end_stateless, current, result, default=result
                )
            if training and args and not self.run.compiled_by_xla:
                self._catch_sample(args[0])
            self._finish(current, result)
            self._turns.end(current)
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
        mapping = [*zip(carried, state[-1], strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._finish(step, logs)
        new = [scope.get_current_value(variable) for variable in carried]
        return logs, type(state)([*state[:-1], new])

    def _first_trace(self, *, training: bool) -> AbstractContextManager[None]:
        """Notes what layers are told while the training step is traced for the first time; and the
        test step, where it is the user's.
        """
        model, shared = self.run.model, self.run.shared
        if training:
            return nullcontext() if "told_in_step" in shared else self._noted_trace()
        if "told_in_test" in shared or is_of_keras(type(model).test_step):
            return nullcontext()
        return noted_calls(model, shared.setdefault("told_in_test", {}))

    @contextmanager
    def _noted_trace(self) -> Iterator[None]:
        told: dict[int, list[Told]] = {}
        self.run.shared["told_in_step"] = told
        # JAX makes a gradient of zeros for a weight that had no part in the loss.
        reads = noted_reads(self._read, layer_that_runs) if self.run.is_stateless else nullcontext()
        with noted_calls(self.run.model, told), reads:
            yield

    def _first_loss(self, *, training: bool) -> AbstractContextManager[None]:
        """Notes which variables the loss reads when it is first computed."""
        is_known = not training or "loss_reads" in self.run.shared
        return nullcontext() if is_known else self._noted_loss()

    @contextmanager
    def _noted_loss(self) -> Iterator[None]:
        read: dict[int, Any] = {}
        with noted_reads(read, layer_that_runs), self.run.backend.watched_reads(read):
            yield
        self.run.shared["loss_reads"] = read

    def _begin_trace(self, step: Step) -> None:
        run = self.run
        if not step.training or run.backend.runs_at_once():
            return
        run.shared["traces"] = run.shared.get("traces", 0) + 1
        if self._functions.traced is None:
            with run.backend.outside_trace():
                self._functions.tracing = TraceTime(run.model, with_flags=not run.is_stateless)

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
            self._turns.ask(step, "trace_logs", step)
            if self.run.replicas > 1:
                self._finish_with_others(step)
                return
            self._turns.ask(step, "trace_end", step)
            self._boundary.call("taps", self._turns.take, step)
            tape = self._tapes[step.training]
            self._boundary.call("tape", tape.write, step.columns, step.in_turns)

    def _write_later(self, step: Step) -> None:
        self._turns.ask(step, "trace_logs", step)
        self._turns.ask(step, "trace_end", step)
        tape = self._tapes[step.training]
        with self.run.backend.observing():
            kept_bytes = later.keep(step, self.run.backend)
        if kept_bytes is None:
            self._look(step)
            tape.write(step.columns)
        else:
            tape.write_later(step, kept_bytes)

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
                self._turns.ask(step, hook, step)

    def _rows_of(self, steps: list[Step]) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
        """Of steps that have waited: which ones, and a value for each or for all."""
        single: list[int] = []
        for which in later.alike(steps):
            columns = None
            if len(which) > later.FEW:
                alike = [steps[i] for i in which]
                columns = self._boundary.call("later", self._columns_of_alike, alike)
            if columns is None:
                single += which
            else:
                yield which, columns
        for i in sorted(single):
            self._look(steps[i])
            yield [i], steps[i].columns

    def _columns_of_alike(self, steps: list[Step]) -> Mapping[str, Any]:
        with self.run.backend.observing():
            columns = later.columns_of(steps, self._look_at_many, self.run.backend)
            for step in steps:
                asked_with = next((a for hook, a in step.waiting if hook == "trace_loss"), None)
                if not asked_with:
                    return columns
                step.x = asked_with[0]
            for probe in self._listeners.of_inputs():
                columns.update(probe.trace_loss_of_many(steps))
        return columns

    def _look_at_many(self, step: Step) -> Columns:
        seen: Any = None
        for hook, asked_with in step.waiting:
            if asked_with is not seen:
                seen = asked_with
                self._see(step, asked_with)
            for method in self._listeners.of_many(hook):
                step.columns.update(method(step))
        return step.columns

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
            if step.waits:
                self._boundary.call("taps", self._put_off_loss, step, given, weights, loss)
                return loss
            with self.run.backend.observing():
                self._boundary.call("taps", self._note, step, given, weights)
                step.loss = self._boundary.call("taps", self._whole_loss, loss)
                if not self._adds_as_keras:
                    step.added = self._boundary.call("losses", self._added, default=[])
                self._turns.ask(step, "trace_loss", step)
                self._boundary.call("taps", self._look_closer, step)
            if self.run.is_stateless:
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

    def _put_off_loss(self, step: Step, given: Mapping[str, Any], weights: Any, loss: Any) -> None:
        """For a step that waits, whose loss can be asked for; not where it is not finite."""
        self._note(step, given, weights)
        step.loss = loss
        with self.run.backend.observing():
            if not self._adds_as_keras:
                step.added = self._boundary.call("losses", self._added, default=[])
            self._turns.ask(step, "trace_loss", step)
            total = self.run.backend.total(loss)
            if math.isfinite(total):
                step.loss = total
            else:
                self._look(step)
                self._look_closer(step)

    def _look_closer(self, step: Step) -> None:
        """A loss that is not finite gives all probes their turn, where asking costs no wait."""
        bad = step.columns.get("loss/nonfinite")
        if not step.full and isinstance(bad, float) and bad > 0:
            step.full = True
            for columns in self._listeners.ask("trace_loss", step, every_batch=False):
                step.columns.update(columns)

    def _whole_loss(self, loss: Any) -> Any:
        """The loss to look at, before Keras divides it by the number of replicas."""
        seen = seen_of(loss, self.run)
        return seen if self.run.replicas == 1 else seen * self.run.replicas

    def _after_metrics(self, original: Function) -> Function:
        names = _positional(original)

        def compute_metrics(*args: Any, **kwargs: Any) -> Any:
            results = original(*args, **kwargs)
            step = self._step
            if step is not None:
                step.asked.add("metrics")
                with nullcontext() if step.waits else self.run.backend.observing():
                    self._boundary.call("taps", self._note, step, _given(names, args, kwargs))
                    self._turns.ask(step, "trace_metrics", step)
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
        step.y_pred = seen_of(step.y_pred, self.run)
        step.outputs = outputs_of(
            self.run.model, step.y, step.y_pred, step.sample_weight, step.given[2]
        )

    def _weights(self, given: Mapping[str, Any]) -> Any:
        return self.run.backend.unshared(given.get("sample_weight"))


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
