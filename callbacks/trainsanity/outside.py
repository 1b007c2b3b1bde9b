"""What is seen of a step from outside: what goes into a compiled function, and what comes out.

Where a compiler follows every line of Python that a step runs, no tap can be in it. Rows that are
put together around it go to the same tapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainsanity.first_layers import fed_layers
from trainsanity.outputs import outputs_of
from trainsanity.pace import Pace
from trainsanity.probes.probe import LayerCall, Step
from trainsanity.recording import measurable
from trainsanity.tape import Tape
from trainsanity.taps import batch_parts

if TYPE_CHECKING:
    from trainsanity.boundary import Boundary
    from trainsanity.listeners import Listeners
    from trainsanity.run import Run

Function = Callable[..., Any]


class PaceAround(Pace):
    """Of looks from outside at a step that is compiled."""

    runs_as = "is compiled"


class Outside:
    """Asks the probes for what they see of the batches of a run without being in the step.

    Args:
        train_tape, test_tape: where rows of training and of test batches go.
    """

    def __init__(
        self,
        run: Run,
        listeners: Listeners,
        boundary: Boundary,
        train_tape: Tape,
        test_tape: Tape,
    ) -> None:
        self._run = run
        self._listeners = listeners
        self._boundary = boundary
        self._tapes = {True: train_tape, False: test_tape}
        run.pace, run.test_pace = PaceAround(thins=True), PaceAround(thins=True)

    def around(self, function: Function, *, training: bool) -> Function:
        """The function, with a look at what it is given and what it returns."""

        def seen(*args: Any) -> Any:
            step = self._boundary.call("outside", self._begin, args[-1], training)
            result = function(*args)
            if step is not None:
                self._boundary.call("outside", self._end, step, result)
            return result

        return seen

    def _begin(self, batches: Any, training: bool) -> Step:
        pace = self._pace(training)
        full = pace.begin()
        began = time.perf_counter()
        x, y, weights = batch_parts(batches[0])  # torch's function takes a list of one batch
        x = measurable(x)
        given = (x, y, self._run.backend.unshared(weights))
        step = Step(training=training, full=full, given=given, x=x)
        pace.spend(time.perf_counter() - began)
        return step

    def _end(self, step: Step, result: Any) -> None:
        run, pace = self._run, self._pace(step.training)
        began = time.perf_counter()
        step.results = result if isinstance(result, Mapping) else {}
        if step.full:  # probes that see every batch need neither
            self._add_structure(step)
        with run.backend.observing():
            every_batch = None if step.full else True
            for columns in self._listeners.ask("see_step", step, every_batch=every_batch):
                step.columns.update(columns)
            self._boundary.call("tape", self._tapes[step.training].write, step.columns)
        pace.spend(time.perf_counter() - began)
        pace.end()

    def _add_structure(self, step: Step) -> None:
        """Layers that take an input as it comes, and which label and weight is which output's."""
        model, (_, y, weights) = self._run.model, step.given
        step.calls = [LayerCall(layer, leaf) for layer, leaf in fed_layers(model, step.x)]
        symbolic = _symbolic_outputs(model)
        if symbolic is not None:
            step.outputs = outputs_of(model, y, symbolic, weights, weights)

    def _pace(self, training: bool) -> Pace:
        return self._run.pace if training else self._run.test_pace


def _symbolic_outputs(model: Any) -> Any | None:
    """In place of predictions: names, shapes and dtypes without values; None where the model is
    not functional.
    """
    return getattr(getattr(model, "_functional", None) or model, "_outputs_struct", None)
