"""Values that compiled losses and metrics make by themselves, caught as they are made.

Calling a function of the user's a second time would not be harmless: it may draw random numbers,
print or count. So what it returns is kept when Keras calls it, and its positions are counted again
by routines of ours. Only under XLA that would be the greater harm: a value that somebody else looks
at is compiled and rounded otherwise. There the function is traced once more, on copies of what it
was given and with every change of state put aside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from trainsanity.boundary import Boundary
from trainsanity.forward import generators_as_now
from trainsanity.masking import mask_of, put_mask
from trainsanity.probes.probe import Step
from trainsanity.wrappers import Function, Wrappers

if TYPE_CHECKING:
    from trainsanity.run import Run


class Observed:
    """From `begin` to `end`, results of `Loss.call` and of a metric's function are kept in the
    step.

    Replicas are traced in turns, each in a thread of its own: the first to begin replaces, the last
    to end puts back, and every result goes to the step of its thread.

    Args:
        step: gives the step that is traced in this thread, or None.
        copies: gives tensors to look at in place of given ones; None where any may be looked at.
    """

    def __init__(
        self,
        model: Any,
        step: Callable[[], Step | None],
        boundary: Boundary,
        copies: Callable[[Any], Any] | None,
    ) -> None:
        self._model = model
        self._step = step
        self._boundary = boundary
        self._copies = copies
        self._begun = 0
        self._wrappers = Wrappers()
        # Replacements of the step before, with whose they are and what they stand for: where the
        # step runs as Python code, making them anew would cost time in every one.
        self._kept: list[tuple[Any, str, Any, Function]] = []
        self._kept_of: tuple[Any, Any] | None = None

    def begin(self) -> None:
        self._begun += 1
        if self._begun == 1:
            self._boundary.call("observed", self._replace_functions)

    def _replace_functions(self) -> None:
        losses = getattr(self._model, "_compile_loss", None)
        metrics = getattr(self._model, "_compile_metrics", None)
        if self._put_back_kept(losses, metrics):
            return
        self._kept, self._kept_of = [], (losses, metrics)
        # Both are built by their first call, on some backends inside the very first step.
        if losses is not None:
            self._once_built(losses, self._watch_losses)
        if metrics is not None:
            self._once_built(metrics, self._watch_metrics)

    def _put_back_kept(self, losses: Any, metrics: Any) -> bool:
        """Uses the replacements of the step before, if they stand for the same functions still."""
        before = self._kept_of
        if before is None or before[0] is not losses or before[1] is not metrics:
            return False
        if any(vars(owner).get(name) is not own for owner, name, own, _ in self._kept):
            return False
        for owner, name, _, replacement in list(self._kept):
            self._wrappers.put(owner, name, replacement)
        return True

    def end(self) -> None:
        """Losses and metrics are what they were."""
        self._begun -= 1
        if self._begun:
            return
        self._wrappers.take_off(with_others=True)

    def _once_built(self, compiled: Any, watch: Callable[[Any], None]) -> None:
        if compiled.built:
            watch(compiled)
            return
        original = compiled.build
        self._kept_of = None

        def build(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._boundary.call("observed", watch, compiled)
            return result

        self._wrappers.put(compiled, "build", build)

    def _watch_losses(self, compiled: Any) -> None:
        for loss in {id(entry[1]): entry[1] for entry in compiled._flat_losses}.values():
            if isinstance(loss, keras.losses.Loss):
                self._keep(loss, "call", self._keeping(loss.call, _keep_loss))

    def _watch_metrics(self, compiled: Any) -> None:
        for metric in compiled.metrics:
            if isinstance(metric, keras.metrics.MeanMetricWrapper) and hasattr(metric, "_fn"):
                keep = _metric_keeper(id(metric))
                self._keep(metric, "_fn", self._keeping(metric._fn, keep))

    def _keeping(self, function: Function, keep: Callable[[Step, Any], None]) -> Function:
        # Whose function it is decides how far it can be trusted.
        @functools.wraps(function)
        def kept(*args: Any, **kwargs: Any) -> Any:
            values = function(*args, **kwargs)
            step = self._step()
            if step is None:
                return values
            if self._copies is None:
                keep(step, values)
            else:
                again = self._boundary.call("observed", self._again, function, args, kwargs)
                if again is not None:
                    keep(step, again)
            return values

        return kept

    def _again(self, function: Function, args: Any, kwargs: Any) -> Any:
        assert self._copies is not None
        args, kwargs = self._copies((args, kwargs))
        # What draws numbers in Python while it is traced has drawn them already.
        with keras.StatelessScope(), generators_as_now():
            return function(*args, **kwargs)

    def _keep(self, owner: Any, name: str, replacement: Function) -> None:
        self._kept.append((owner, name, vars(owner).get(name), replacement))
        self._wrappers.put(owner, name, replacement)


def seen_of(structure: Any, run: Run, apart: Function | None = None) -> Any:
    """The tensors for probes to look at; under XLA behind a barrier, or apart in another way, with
    their masks.
    """
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


def _keep_loss(step: Step, values: Any) -> None:
    step.losses.append(values)


def _metric_keeper(key: int) -> Callable[[Step, Any], None]:
    def keep(step: Step, values: Any) -> None:
        step.metric_values[key] = values

    return keep
