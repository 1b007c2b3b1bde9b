"""The learning rate: as declared, as read inside the step, and as the weights really move."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity import optimizers
from trainsanity.backends.backend import norm_of, sum_of
from trainsanity.difference import numpy_of
from trainsanity.pace import Mark
from trainsanity.probes.probe import Columns, Probe, Step, Update
from trainsanity.shadow import (
    Sampled,
    Shadow,
    choose,
    effective_rate,
    effective_terms,
    values_of,
    why_none,
)
from trainsanity.tape import NOTHING

DECLARED_EVERY = 64  # steps between readings on the host


class LearningRate(Probe):
    """Declared on the host, applied in the step, effective from the movement of sampled weights.

    For every optimizer that the model holds; those that are not the compiled one are called by
    their attribute.
    """

    name = "learning_rate"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        # Within a program that has no branches nothing could take over what was left out.
        self.every_batch = run.is_stateless or run.compiled_by_xla
        self._followers: dict[int, _Follower] = {}
        self._next_declared = 1
        self._remembered = 0
        self._left: Any = None  # the state that the latest execution has given back
        run.shared["remember_weights"] = self._remember

    # on the host

    def on_optimizer(self, name: str, optimizer: Any, variables: Sequence[Any]) -> None:
        if self.run.backend.follows_code(self.run.model):
            return  # no tap can be in the step
        if id(optimizer) not in self._followers:
            self._followers[id(optimizer)] = _Follower(self.run, name, optimizer, variables)

    def on_epoch_begin(self, epoch: int) -> None:
        self._next_declared = 0
        for follower in self._followers.values():
            # Weights and slots may have been loaded, also right before the first epoch.
            if follower.shadow is not None:
                follower.shadow.copy_slots()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._left = None  # it holds the weights, which may be replaced now

    def before_step(self, step: int) -> None:
        pace = self.run.pace
        if self.run.state is not None and self.run.state is not self._left:
            self._look_again()
        if not (pace.in_graph or pace.follows_weights):
            if not pace.is_next_full:
                for follower in self._followers.values():
                    follower.is_behind = True
                return
            for follower in self._followers.values():
                if follower.is_behind:
                    follower.catch_up(step)
        if step < self._next_declared:
            return
        self._next_declared = step + DECLARED_EVERY
        for name, optimizer in optimizers.of_model(self.run.model).items():
            self.run.points(step, {signal("declared", name): self._declared(optimizer)})

    def _look_again(self) -> None:
        """Variables were whole since the latest step, so that anybody may have written to them."""
        run = self.run
        followers = [f for f in self._followers.values() if f.knows_before]
        if not followers:
            return
        with run.backend.made_whole(run.model, (run.state, None)) as is_whole:
            for follower in followers if is_whole else ():
                run.assignments += follower.corrections()

    def on_closed(self) -> None:
        self._left = None

    def after_step(self, step: int) -> None:
        pace, run = self.run.pace, self.run
        self._left = run.state
        in_epoch = step - run.epoch_first_step + 1
        is_last = in_epoch == run.shared.get("declared_steps")
        if pace.follows_weights:
            return
        is_due = pace.is_next_full and not pace.in_graph
        if not pace.full and (is_due or is_last):
            self._note(step)

    def _remember(self) -> None:
        """Between two steps, before somebody writes to weights."""
        pace, step = self.run.pace, self.run.step
        if pace.follows_weights:
            return
        if pace.full or (pace.is_next_full and not pace.in_graph) or self._remembered == step:
            return
        self._remembered = step  # further writes must find what was there before the first
        pace.take_next()
        self._note(step)

    def _note(self, step: int) -> None:
        for follower in self._followers.values():
            follower.note(step)

    def _declared(self, optimizer: Any) -> float:
        """The learning rate as the host reads it for the next step."""
        optimizer = optimizers.working(optimizer)
        source = optimizer._learning_rate
        if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
            source = source(self.run.read(optimizer._iterations))
        elif optimizers.is_python_rate(source):
            source = source()
        if isinstance(source, keras.Variable):
            return float(self.run.read(source))
        return float(numpy_of(source))

    # inside the step

    def trace_before_update(self, update: Update) -> None:
        follower = self._followers.get(id(update.optimizer))
        if follower is not None:
            follower.before(update)

    def trace_after_update(self, update: Update) -> Columns:
        follower = self._followers.get(id(update.optimizer))
        return {} if follower is None else follower.after(update)

    def trace_update(self, update: Update) -> Columns:
        follower = self._followers.get(id(update.optimizer))
        if follower is not None:
            follower.note_gradients(update)
        return {}

    def trace_end(self, step: Step) -> Columns:
        columns: dict[str, Any] = {}

        column = self.run.backend.column

        seen = [found for f in self._followers.values() if (found := f.end(step, columns))]
        if seen:
            outside = [s["outside"] for s in seen]
            columns |= {
                "update/sampled_norm": column(norm_of, [s["moved"] for s in seen]),
                "weights/sampled_norm": column(norm_of, [s["after"] for s in seen]),
                "weights/moved_outside": functools.reduce(ops.maximum, outside),
                "weights/nonfinite": column(sum_of, [s["nonfinite"] for s in seen]),
            }
        gradients = [s["gradient"] for s in seen if "gradient" in s]
        if gradients:
            columns["gradient/sampled_norm"] = column(norm_of, gradients)
        return columns


def signal(witness: str, name: str) -> str:
    return f"learning_rate:{name}/{witness}" if name else f"learning_rate/{witness}"


class _Follower:
    """What is followed of one optimizer: sampled weights before and after its update, and its
    shadow.

    Attributes:
        is_behind: steps have run since its last turn.
        knows_before: whether the step takes sampled weights for what the one before has left; the
            host then sees to it that they are.
    """

    def __init__(self, run: Any, name: str, optimizer: Any, variables: Sequence[Any]) -> None:
        self._run = run
        self._name = name
        self._optimizer = optimizer
        self._sampled: list[Sampled] = choose(variables)
        self.shadow: Shadow | None = None
        self.is_behind = False
        self._noted = 0  # the step after which `_last` was read between two turns
        self._knows_last = True
        self.knows_before = False
        size = sum(map(len, self._sampled))
        if not size:
            self._not_testable("the optimizer has no weights")
            return
        prefix = f"trainsanity_{name or 'optimizer'}"
        zeros = run.backend.zeros((size,), "float32")
        self._last = run.keep(keras.Variable(zeros, trainable=False, name=f"{prefix}_last"))
        # A Python number would be of a weak type: JAX compiles anew when it turns into another.
        none = run.backend.zeros((), "float32")
        self._has_last = run.keep(keras.Variable(none, trainable=False, name=f"{prefix}_has_last"))
        self._last_for = Mark(run.pace.count) if run.pace.in_graph else None
        # In a pure step that uses the weights once, they are what the one before has left. To read
        # them before they are updated would make XLA copy all of them.
        is_pure = run.is_stateless and run.is_traced
        is_alone = keras.distribution.distribution() is None
        self.knows_before = bool(is_pure and is_alone and run.shared.get("is_keras_step"))
        if self.knows_before:
            zero = run.backend.zeros((), "float32")
            moved = keras.Variable(zero, trainable=False, name=f"{prefix}_outside")
            self._moved_outside = run.keep(moved)
        reason = why_none(optimizer, self._sampled)
        if reason is not None:
            self._not_testable(reason)
            return
        self.shadow = Shadow(run, optimizer, self._sampled)

    def _not_testable(self, reason: str) -> None:
        self._run.not_testable[signal("effective", self._name)] = reason

    # where it has not every turn

    def note(self, step: int) -> None:
        """After a step without its turn: the weights that the next step should find."""
        if self._sampled:
            self._noted = step
            self._last.assign(self._pick())
            self._has_last.assign(1.0)
            if self._last_for is not None:
                self._last_for.set()

    def catch_up(self, step: int) -> None:
        """Before its next turn: the shadow takes over what the steps since have done."""
        self.is_behind = False
        self._knows_last = self._noted == step - 1
        if self.shadow is not None:
            self.shadow.copy_slots()

    def corrections(self) -> list[tuple[Any, np.ndarray[Any, Any]]]:
        """Between two steps, while variables are whole: what the next one is to find where
        somebody has written to weights, or no step has run.
        """
        read = self._run.backend.read
        now, left = values_of(self._sampled, self._run.backend), read(self._last)
        had_last = bool(read(self._has_last))
        if had_last and np.array_equal(now, left, equal_nan=True):
            return []
        with np.errstate(invalid="ignore"):
            moved = np.abs(now - left).max(initial=0.0) if had_last else 0.0
        return [(self._last, now), (self._moved_outside, np.array(moved, np.float32))]

    # inside the step

    def before(self, update: Update) -> None:
        own = self._own(update.shared)
        own["calls"] = own.get("calls", 0) + 1
        own["rate"] = ops.cast(ops.convert_to_tensor(self._rate(update.optimizer)), "float32")
        own["updated"] = update.updated
        if self.shadow is not None:
            update.prepare()
        own["untouched"] = _is_untouched(optimizers.working(update.optimizer))
        if self._sampled and "before" not in own:
            own["before"] = None if self.knows_before else update.in_turn(self._beginning())

    def _rate(self, optimizer: Any) -> Any:
        """In force. Of a schedule one of our own, from a counter that XLA takes for another one:
        else it would compile the update's for both, and round it otherwise.
        """
        worker, backend = optimizers.working(optimizer), self._run.backend
        schedule = worker._learning_rate
        is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
        if not is_schedule or not self._run.compiled_by_xla:
            return optimizer.learning_rate
        return schedule(backend.behind_barrier([ops.convert_to_tensor(worker.iterations)])[0])

    def _beginning(self) -> Callable[[], Any]:
        """Picks the sampled weights; in a graph the shadow first takes over what steps without a
        turn have done.
        """
        pace, shadow = self._run.pace, self.shadow
        counters = shadow.counters() if pace.in_graph and shadow is not None else None

        def begin() -> Any:
            if shadow is not None and counters is not None:
                shadow.trace_slots(counters, ops.logical_not(pace.taken.is_now()))
            return self._pick()

        return begin

    def after(self, update: Update) -> Columns:
        own = self._own(update.shared)
        columns: dict[str, Any] = {signal("applied", self._name): own["rate"]}
        if not self._name:
            worker = optimizers.working(update.optimizer)
            columns["optimizer/iterations"] = ops.convert_to_tensor(worker.iterations)
        if self._sampled:
            own["after"] = None if self._can_wait() else self._pick()
        return columns

    def _can_wait(self) -> bool:
        """Whether nothing writes to the weights between the update and the end of the step, where
        they are read in turns only.
        """
        return self._run.pace.in_graph and bool(self._run.shared.get("is_keras_step"))

    def note_gradients(self, update: Update) -> None:
        if self._sampled:
            own = self._own(update.shared)
            own["gradient"], own["known"] = self._pick_gradients(update)

    def end(self, step: Step, columns: dict[str, Any]) -> dict[str, Any]:
        """Sums over the sampled elements: squares of how far they moved, of their values and of
        their gradients, and how many are not finite.
        """
        own = self._own(step.shared)
        if "after" not in own:
            return {}
        after = self._pick() if own["after"] is None else own["after"]
        before, gradient = own["before"], own["gradient"]
        if before is None:
            before = ops.convert_to_tensor(self._last)
        moved = after - before
        terms = {"moved": moved * moved, "after": after * after, "nonfinite": _nonfinite(after)}
        if gradient is not None:
            terms["gradient"] = gradient * gradient
        if self.shadow is not None and self._can_be_effective(own):
            expected = self.shadow.move(own["rate"], before, gradient, own["updated"])
            followed = ops.convert_to_tensor(self.shadow.followed * own["known"])
            terms |= effective_terms(expected, moved, before, followed)
        apart = [] if self.knows_before else [ops.abs(before - self._last)]
        sums, outside = self._run.backend.sums_and_largest(list(terms.values()), apart)
        found = dict(zip(terms, sums, strict=True))
        if self.knows_before:
            found["outside"] = ops.convert_to_tensor(self._moved_outside)
            self._moved_outside.assign(ops.zeros(()))
        elif self._knows_last and not self.is_behind:
            found["outside"] = outside[0] * self._has_last
        else:
            found["outside"] = ops.full((), NOTHING)
        if self._last_for is not None:
            found["outside"] = ops.where(self._last_for.is_now(), found["outside"], NOTHING)
            self._last_for.set_in_step()
        self._knows_last = True
        self._last.assign(after)
        self._has_last.assign(1.0)
        if self.shadow is not None:
            columns[signal("effective", self._name)] = self._effective(own, found)
        return found

    def _can_be_effective(self, own: dict[str, Any]) -> bool:
        if self.is_behind:  # a turn that came unplanned
            return False
        if own["gradient"] is None:
            self._not_testable("no sampled variable gets a dense gradient")
            return False
        if own["calls"] > 1:
            self._not_testable("the optimizer is applied more than once in a step")
            return False
        return True

    def _effective(self, own: dict[str, Any], sums: dict[str, Any]) -> Any:
        if "expected" not in sums:
            return ops.full((), NOTHING)
        conditions = [own[c] for c in ("updated", "untouched") if own[c] is not None]
        cells = [own["rate"], *(sums[name] for name in ("projected", "expected", "rounding"))]
        cells += [ops.cast(condition, "float32") for condition in conditions]
        return self._run.backend.column(effective_rate, cells)

    def _own(self, shared: dict[Any, Any]) -> dict[str, Any]:
        found: dict[str, Any] = shared.setdefault(("follower", id(self)), {})
        return found

    def _pick(self) -> Any:
        pick = self._run.backend.pick
        parts = [pick(s.variable, s.coordinates) for s in self._sampled]
        return self._run.backend.joined([ops.cast(part, "float32") for part in parts])

    def _pick_gradients(self, update: Update) -> tuple[Any | None, np.ndarray[Any, Any]]:
        """Gradients of the sampled elements as they enter the update; 1.0 where there is one."""
        backend, entering = self._run.backend, update.entering
        size = sum(map(len, self._sampled))
        present = [
            v for g, v in zip(update.gradients, update.variables, strict=True) if g is not None
        ]
        if entering is None or len(entering) != len(present):
            return None, np.zeros(size, np.float32)
        by_variable = {id(v): g for v, g in zip(present, entering, strict=True)}
        parts, known = [], []
        for sampled in self._sampled:
            gradient = by_variable.get(id(sampled.variable))
            usable = gradient is not None and not backend.is_sparse(gradient)
            known.append(np.full(len(sampled), float(usable), np.float32))
            if usable:
                picked = backend.pick_gradient(gradient, sampled.coordinates)
                parts.append(ops.cast(picked, "float32"))
            else:
                parts.append(ops.zeros((len(sampled),), "float32"))
        every = np.concatenate(known)
        return (backend.joined(parts) if every.any() else None), every


def _is_untouched(worker: Any) -> Any | None:
    """Whether the moving average leaves the weights alone at this step, a bool tensor; None:
    always.
    """
    every = worker.ema_overwrite_frequency if worker.use_ema else None
    return ops.not_equal((worker.iterations + 1) % every, 0) if every else None


def _nonfinite(vector: Any) -> Any:
    """1.0 for elements that are NaN or infinite."""
    return ops.cast(ops.logical_not(ops.isfinite(vector)), "float32")
