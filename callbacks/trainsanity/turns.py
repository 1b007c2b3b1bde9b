"""Turns: which probes are asked at a step, and by what that is decided.

Python decides where the step runs as Python code, the graph itself where there is one, and the host
by the choice of a program where no branch can leave anything out.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import keras

from trainsanity import programs
from trainsanity.backends.backend import Element
from trainsanity.difference import elements_of
from trainsanity.pace import Pace
from trainsanity.programs import OF_A_GRAPH, Program, ProgramPace, ShortGraphPace, ShortProgram
from trainsanity.tape import GAP, Tape

if TYPE_CHECKING:
    from trainsanity.boundary import Boundary
    from trainsanity.listeners import Listeners
    from trainsanity.probes.probe import Step
    from trainsanity.run import Run


class Turns:
    """Gives the run its paces, and asks the probes accordingly.

    Args:
        tape: where rows of training batches go.

    Attributes:
        may_choose: whether several programs of one step take turns.
    """

    def __init__(self, run: Run, listeners: Listeners, boundary: Boundary, tape: Tape) -> None:
        self._run = run
        self._listeners = listeners
        self._boundary = boundary
        self._tape = tape
        thins = self._may_thin() and not run.is_traced
        run.pace, run.test_pace = Pace(thins=thins), Pace(thins=thins)
        self._graph: ShortGraphPace | None = None
        self._program: ProgramPace | None = None
        if run.kind == "fit" and self._may_thin_in_graph():
            run.pace = self._graph = ShortGraphPace(
                run.backend.read, tape.count, self._short(OF_A_GRAPH)
            )
        elif run.kind == "fit" and self._is_one_program():
            run.pace = self._program = ProgramPace(self._short(), self._wait_for)
        self.may_choose = bool(self._graph or self._program)

    def _may_thin(self) -> bool:
        """Whether evidence can be left out of a step."""
        several = int(self._run.model.steps_per_execution or 1) > 1 or self._run.replicas > 1
        return not (self._run.is_stateless or several)

    def _may_thin_in_graph(self) -> bool:
        run = self._run
        is_graph = run.is_traced and not run.compiled_by_xla
        return is_graph and self._may_thin() and run.backend.leaves_out()

    def _is_one_program(self) -> bool:
        """Whether no branch can leave anything out of the step: on JAX, and under XLA."""
        run = self._run
        if run.is_stateless:
            return run.is_traced
        return run.compiled_by_xla and run.is_traced and self._may_thin()

    def _short(self, share: float = 1.0) -> ShortProgram:
        guard = functools.partial(self._boundary.call, "short step")
        backend = self._run.backend
        return ShortProgram(
            self._short_of, backend.kind_of, guard, share=share, direct=backend.direct
        )

    def _short_of(self, program: Program, args: tuple[Any, ...]) -> Program | None:
        """The step without what need not be measured at every batch; None where a branch serves."""
        run = self._run
        if self._graph and elements_of(run.model.trainable_weights) < programs.MANY_WEIGHTS:
            return None
        return run.backend.leaving_out(program, args)

    def _wait_for(self, args: tuple[Any, ...]) -> None:
        self._run.backend.wait_for(args, self._tape.count)

    # on the host

    def run(self, program: Program, args: tuple[Any, ...]) -> Any:
        """One step, by the program of its turn."""
        pace = self._graph or self._program
        return pace.run(program, args) if pace else program(*args)

    # while a step is traced, or runs as Python code

    def begin(self, step: Step) -> None:
        step.full = self._pace(step).begin()

    def end(self, step: Step) -> None:
        self._pace(step).end()

    def _pace(self, step: Step) -> Pace:
        return self._run.pace if step.training else self._run.test_pace

    def tell(self, step: Step, hook: str, evidence: Any) -> None:
        """Tells all probes."""
        began = time.perf_counter()
        self._listeners.tell(hook, evidence)
        self._pace(step).spend(time.perf_counter() - began)

    def ask(self, step: Step, hook: str, evidence: Any) -> None:
        """Puts into the step what probes find; where they must wait for their turn, at its end."""
        if step.is_rehearsal:
            return
        if step.waits:
            step.waiting.append((hook, step.asked_with))
            return
        if step.training and self._program is not None:
            self._ask_in_turns(step, hook, evidence)
            return
        every_batch = None if step.full else True
        if self._decides(step) is not None and hook != "trace_after_update":
            every_batch = True
            step.put_off.append((hook, step.as_it_is() if evidence is step else evidence))
        began = time.perf_counter()
        for columns in self._listeners.ask(hook, evidence, every_batch=every_batch):
            step.columns.update(columns)
        self._pace(step).spend(time.perf_counter() - began)

    def _ask_in_turns(self, step: Step, hook: str, evidence: Any) -> None:
        """Notes what a program for steps without a turn leaves out: columns, and what probes keep
        in variables.
        """
        for columns in self._listeners.ask(hook, evidence, every_batch=True):
            step.columns.update(columns)
        kept = self._run.kept if hook == "trace_end" else []
        with self._run.backend.rarely(kept):
            for columns in self._listeners.ask(hook, evidence, every_batch=False):
                step.columns.update(columns)
                step.in_turns.update(columns)

    def _decides(self, step: Step) -> ShortGraphPace | None:
        """Where the graph decides at each step whether all probes have their turn."""
        return self._graph if step.training else None

    def of_graph(self, step: Step) -> Any | None:
        """Whether all probes have their turn, a bool tensor; always where the loss is not finite.
        None where the graph does not decide.
        """
        pace = self._decides(step)
        if pace is None:
            return None
        if step.turn is None:
            turn = pace.is_turn()
            bad = step.columns.get("loss/nonfinite")
            if bad is not None:
                turn = keras.ops.logical_or(turn, keras.ops.greater(bad, 0))
            step.turn = self._run.backend.in_turn(turn, False)
        return step.turn

    def take(self, step: Step) -> None:
        """What was put off, in a branch of the graph."""
        pace = self._decides(step)
        if pace is None or step.is_rehearsal:
            return
        names: list[str] = []

        def compute() -> Any:
            found: dict[str, Any] = {}
            for hook, evidence in step.put_off:
                for columns in self._listeners.ask(hook, evidence, every_batch=False):
                    found.update(columns)
            pace.take()
            names.extend(found)
            return self._run.backend.vector([*found.values()] or [GAP])

        values = self._run.backend.when(self.of_graph(step), compute, GAP)
        step.columns.update((name, Element(values, place)) for place, name in enumerate(names))
