"""Taps on optimizers: what a step hands to them, and what they make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import keras

from trainsanity import forward, optimizers
from trainsanity.observed import seen_of
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Step, Update
from trainsanity.tape import GAP
from trainsanity.wrappers import Function, Wrappers

if TYPE_CHECKING:
    from trainsanity.boundary import Boundary
    from trainsanity.listeners import Listeners
    from trainsanity.run import Run
    from trainsanity.turns import Turns

IN_THE_UPDATE = "the gradients of the replicas are added up inside the optimizer's update"
TRACED_APART = "the step applies the optimizer in a branch, loop or function traced by itself"
OF_UPDATES = (
    "gradient/norm",
    "gradient/nonfinite",
    "learning_rate/applied",
    "learning_rate/effective",
    "update/sampled_norm",
)


class UpdateTaps:
    """Wraps the optimizers of the model of a run.

    Args:
        wrappers: takes the wrappers off at the end.
        step: gives the step that is traced in this thread, or None.
    """

    def __init__(
        self,
        run: Run,
        listeners: Listeners,
        boundary: Boundary,
        turns: Turns,
        wrappers: Wrappers,
        step: Callable[[], Step | None],
    ) -> None:
        self._run = run
        self._listeners = listeners
        self._boundary = boundary
        self._turns = turns
        self._wrappers = wrappers
        self._step = step
        self._tapped: list[Any] = []  # optimizers
        self._made_in_trace: Any = None

    def tap_all(self) -> None:
        """Taps every optimizer the model holds that is not tapped yet."""
        if self._run.replicas > 1:
            for name in OF_UPDATES:
                self._run.not_testable[name] = IN_THE_UPDATE
            return
        for name, optimizer in optimizers.of_model(self._run.model).items():
            if any(optimizer is known for known in self._tapped):
                continue
            self._tapped.append(optimizer)
            if self._run.is_stateless and optimizers.working(optimizer) is not optimizer:
                tap = self._around_stateless_update(name, optimizer, optimizer.stateless_apply)
                self._wrappers.put(optimizer, "stateless_apply", tap)
            else:
                tap = self._around_update(name, optimizer, optimizer.apply)
                self._wrappers.put(optimizer, "apply", tap)

    def forget(self) -> None:
        """The wrappers were taken off."""
        self._tapped.clear()

    def will_be_traced_again(self, step: Step) -> bool:
        """Whether the first update of this step makes variables, so that its trace is thrown
        away.
        """
        run, model = self._run, self._run.model
        if not (step.training and self._traces_again() and model.built):
            return False
        optimizer = model.optimizer
        is_first = optimizer is not None and not optimizer.built and model.trainable_weights
        return (
            bool(is_first)
            and run.shared["is_keras_step"]
            and optimizers.always_has_slots(optimizer)
        )

    def _traces_again(self) -> bool:
        """Whether a step in which variables are made is only traced, and then once more."""
        backend = self._run.backend
        return backend.TRACES_AGAIN and self._run.is_traced and not backend.runs_at_once()

    def _around_update(self, name: str, optimizer: Any, original: Function) -> Function:
        def apply(*args: Any, **kwargs: Any) -> Any:
            step = self._step()
            if step is None or not step.full:  # no probe of updates sees every batch
                return original(*args, **kwargs)
            if self._is_traced_apart(step):
                return original(*args, **kwargs)
            update = self._boundary.call(
                "update", self._update, name, optimizer, step, args, kwargs
            )
            if update is None:
                return original(*args, **kwargs)
            self._before(step, update)
            with update.clipping_watched():
                result = original(*args, **kwargs)
            self._after(step, update)
            return result

        return apply

    def _around_stateless_update(self, name: str, optimizer: Any, original: Function) -> Function:
        """For an optimizer whose `apply` Keras does not call on JAX: loss scaling."""

        def stateless_apply(*args: Any, **kwargs: Any) -> Any:
            step = self._step()
            if step is None or self._is_traced_apart(step):
                return original(*args, **kwargs)
            if len(args) != 3:
                return original(*args, **kwargs)
            state, grads, weights = args
            with _as_variables(optimizer, weights, state):
                update = self._boundary.call(
                    "update", self._update, name, optimizer, step, (grads,), {}
                )
                if update is not None:
                    self._before(step, update)
            result = original(*args, **kwargs)
            if update is not None:
                with _as_variables(optimizer, *result):
                    self._after(step, update)
            return result

        return stateless_apply

    def _is_traced_apart(self, step: Step) -> bool:
        """Whether the update is in a branch, loop or function within the step that is traced by
        itself: what is made in there must not be used outside.
        """
        if step.scope == self._run.backend.trace_scope():
            return False
        for name in OF_UPDATES:
            self._run.not_testable[name] = TRACED_APART
        return True

    def _update(
        self, name: str, optimizer: Any, step: Step, args: tuple[Any, ...], kwargs: Any
    ) -> Update | None:
        backend = self._run.backend
        gradients = args[0] if args else kwargs["grads"]
        variables = args[1] if len(args) > 1 else kwargs.get("trainable_variables")
        if variables is None:
            variables = optimizer._trainable_variables
        if not isinstance(gradients, (list, tuple)) or not isinstance(variables, (list, tuple)):
            # Reading an iterator would take from it what the optimizer needs.
            raise TypeError("gradients and variables are no lists, so they cannot be looked at")
        if not optimizer.built:
            self._build(optimizer, variables, step)
        if not self._run.is_stateless:
            with backend.outside_trace(), forward.names_untouched():
                self._listeners.tell("on_optimizer", name, optimizer, variables)
        if step.is_rehearsal:
            return None
        given = list(gradients)
        seen = seen_of(given, self._run, backend.gradients_to_see)
        copies = functools.partial(backend.copies, xla=self._run.compiled_by_xla)
        update = Update(name, optimizer, given, seen, list(variables), step.shared, copies)
        turn = self._turns.of_graph(step)
        if turn is not None:
            update.in_turn = lambda compute: backend.when(turn, compute, GAP)
        return update

    def _build(self, optimizer: Any, variables: Sequence[Any], step: Step) -> None:
        """As `apply` would a moment later; what is measured before it needs the slots.

        Outside of the trace, where to make a variable takes TensorFlow many times as long; one is
        made in it all the same, so that it is traced as often as without us.
        """
        backend = self._run.backend
        before = len(optimizer.variables)
        is_own = not is_of_keras(type(optimizer).build)  # it may use what is traced
        place = nullcontext() if is_own else backend.outside_trace()
        with place, keras.name_scope(optimizer.name, caller=optimizer):
            is_wrapper = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            optimizer.build(variables if is_wrapper else list(variables))
        optimizer.built = True
        if len(optimizer.variables) == before or not self._run.is_traced:
            return
        step.is_rehearsal = self._traces_again()
        if step.is_rehearsal and not is_own:
            with forward.names_untouched():
                self._made_in_trace = keras.Variable(0, trainable=False, name="trainsanity_made")

    def _before(self, step: Step, update: Update) -> None:
        with self._run.backend.observing():
            self._turns.tell(step, "trace_before_update", update)

    def _after(self, step: Step, update: Update) -> None:
        with self._run.backend.observing():
            self._turns.ask(step, "trace_after_update", update)
            self._turns.ask(step, "trace_update", update)


def _as_variables(optimizer: Any, weights: Any, state: Any) -> Any:
    """Within, the optimizer's and the model's variables have these values."""
    pairs = [*zip(optimizer._trainable_variables, weights, strict=True)]
    pairs += zip(optimizer.variables, state, strict=True)
    return keras.StatelessScope(state_mapping=pairs)
