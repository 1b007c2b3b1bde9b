"""JAX's way of the operations that Keras does not offer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.extend.core
import jax.extend.core.primitives as primitives
import jax.numpy as jnp
import keras
import numpy as np
from jax.interpreters import ad, mlir

from trainsanity.backends.backend import (
    Backend,
    OnHost,
    Sizes,
    identity,
    ratio,
    side_by_side,
    sum_of,
)
from trainsanity.backends.jax_reductions import (
    SMALL_AND_EXACT,
    Awaited,
    Deviation,
    Kind,
    Mean,
    Reduced,
    columns_made,
    composed,
    corrected,
    filled,
    in_loops,
    is_small,
    largest_of,
    loops,
    negative,
    shaped,
)
from trainsanity.overheard import Function, Overheard

# Elements of a variable that are rather moved to the host as a whole: to pick some, a program
# is compiled for every shape, which takes longer.
MOST_MOVED = 1_000_000
MOST_KEPT = 262_144  # elements of a gradient that is rather kept for a while than sorted
# As Keras names the parts of its state; an evaluation has those without the optimizer's.
STATE = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)


class Jax(Backend):
    # Within an epoch Keras empties the variables; the state travels as arguments.
    CELLS = 2
    READABLE_IN_EPOCH = False
    HAS_GRADIENT_BOUNDARY = True
    COMPILES_OPERATIONS = True

    def row(self, cells: Mapping[int, Any], width: int, rest: float) -> Any:
        values = side_by_side(cells, rest)
        numbers = {i: v for i, v in enumerate(values) if isinstance(v, (int, float))}
        fixed = np.full(width, rest, np.float32)
        fixed[list(numbers)] = list(numbers.values())
        scalars = {
            i: shaped(jnp.asarray(v, jnp.float32), (1,))
            for i, v in enumerate(values)
            if i not in numbers
        }
        places = jax.lax.iota(np.int32, width)
        if scalars and not self.is_traced(places):
            return (
                jnp.asarray(fixed)
                .at[np.array([*scalars], np.int32)]
                .set(jax.lax.concatenate([*scalars.values()], 0))
            )
        if not cells:
            return jnp.asarray(fixed)
        first, end = min(cells), max(scalars, default=-1) + 1
        row = [scalars.get(i, fixed[i : i + 1]) for i in range(first, end)]
        row.append(fixed[max(first, end) :])  # of one piece, or XLA would make it of its numbers
        return jax.lax.pad(jax.lax.concatenate(row, 0), np.float32(rest), [(first, 0, 0)])

    def not_differentiated(self, row: Any) -> Any:
        return jax.lax.stop_gradient(row)

    def vector(self, scalars: Sequence[Any]) -> Any:
        parts = [shaped(jnp.asarray(scalar, jnp.float32), (1,)) for scalar in scalars]
        return jax.lax.concatenate(parts, 0)

    def choosing(
        self, model: Any, run: Callable[[Any, tuple[Any, ...]], Any]
    ) -> Callable[..., Any]:
        make = model._make_function

        def make_function(step_function: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(step_function, "__wrapped__", None) is not model.train_step:
                return make(step_function, *args, **kwargs)

            def chosen(*args: Any) -> Any:
                return run(step_function, args)

            return make(chosen, *args, **kwargs)

        return make_function

    def in_turn(self, value: Any, otherwise: Any) -> Any:
        if not isinstance(otherwise, jax.Array):  # of a constant no operation need be traced
            otherwise = np.full(value.shape, otherwise, value.dtype)
        return _in_turn.bind(value, otherwise)

    def leaving_out(self, program: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        # Debuggers run a program operation by operation, and several devices share out its work.
        is_debugged = jax.config.jax_debug_nans or jax.config.jax_debug_infs
        leaves = jax.tree.leaves(args)
        devices = {d for leaf in leaves if isinstance(leaf, jax.Array) for d in leaf.devices()}
        is_known = hasattr(program, "trace") and hasattr(jax.extend.core, "jaxpr_as_fun")
        is_shared = len(devices) != 1 or keras.distribution.distribution() is not None
        if is_debugged or is_shared or not is_known:
            return None
        traced = program.trace(*args)
        returned = jax.tree.structure(traced.out_info)
        run = jax.extend.core.jaxpr_as_fun(traced.jaxpr)

        def without(*args: Any) -> Any:
            with _in_turn.left_out():
                return jax.tree.unflatten(returned, run(*jax.tree.leaves(args)))

        compiled: Callable[..., Any] = jax.jit(without, donate_argnums=0).lower(*args).compile()
        return compiled

    @contextmanager
    def rarely(self, kept: Sequence[Any]) -> Iterator[None]:
        before = [(variable, variable.value) for variable in kept]
        yield
        for variable, value in before:
            if variable.value is not value:
                variable.assign(self.in_turn(variable.value, value))

    def kind_of(self, args: tuple[Any, ...]) -> Any:
        """Shapes and types of a batch; numbers of Python have a type only."""
        leaves = [leaf for leaf in keras.tree.flatten(args[1:]) if leaf is not None]
        return [(getattr(x, "shape", None), getattr(x, "dtype", type(x))) for x in leaves]

    def wait_for(self, args: tuple[Any, ...], variable: Any) -> None:
        jax.block_until_ready(args)

    def write_row(self, ring: Any, count: Any, row: Any) -> None:
        """In the scope that carries the metrics' variables."""
        # No index of `at[...]`, whose bounds are checked by programs of their own.
        at = jax.lax.rem(count.value, np.int32(ring.shape[0]))
        ring.assign(jax.lax.dynamic_update_slice(ring.value, row[None], (at, np.int32(0))))
        count.assign(count.value + 1)

    def read(self, variable: Any) -> np.ndarray[Any, Any]:
        """Between epochs only."""
        return np.asarray(variable.value)

    def read_in_step(self, variable: Any, model: Any, state: Any) -> np.ndarray[Any, Any]:
        """Out of the state right before a step, else from the variable itself."""
        if state is None:
            return self.read(variable)
        for own, value in _travelling(model, state):
            if own is variable:
                return np.asarray(value)
        return self.read(variable)  # it is no part of the state that travels

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        # Moved to the device: for all other ways JAX compiles a program for every shape.
        # Copied, as steps write to it.
        return jax.device_put(np.zeros(shape, dtype), may_alias=False)

    @contextmanager
    def made_whole(self, model: Any, args: tuple[Any, ...]) -> Iterator[bool]:
        state = args[0] if len(args) > 1 else None
        pairs = [] if state is None else list(_travelling(model, state))
        if not pairs or any(value.is_deleted() for _, value in pairs):
            yield False
            return
        before = [variable._value for variable, _ in pairs]
        is_synced, model._jax_state_synced = model._jax_state_synced, True
        try:
            for variable, value in pairs:
                variable._value = value
            yield True
        finally:
            model._jax_state_synced = is_synced
            for (variable, _), value in zip(pairs, before, strict=True):
                variable._value = value

    def state_of(self, result: Any) -> Any:
        return result[1]

    def assigned(
        self, model: Any, args: tuple[Any, ...], values: Sequence[tuple[Any, Any]]
    ) -> tuple[Any, ...]:
        given = {id(variable): value for variable, value in values}
        state, *rest = args
        held = [
            jax.device_put(given[id(v)], may_alias=False) if id(v) in given else now
            for v, now in zip(model.metrics_variables, state[-1], strict=True)
        ]
        return (type(state)([*state[:-1], held]), *rest)

    def keep_state(self, model: Any, args: tuple[Any, ...], result: Any = None) -> None:
        """Keras puts back what the last execution has given that came to its end: nothing before
        the first one has, and what the next one may have consumed. Compiling takes longer with
        us, and so do the moments before it knows of a result.
        """
        state = args[0] if result is None else result[1]
        held = getattr(model, "_jax_state", None)
        if (result is None and held and not _is_consumed(held)) or _is_consumed(state):
            return
        names = STATE if len(state) == len(STATE) else (*STATE[:2], *STATE[3:])
        model._jax_state = dict(zip(names, state, strict=True))
        model._jax_state_synced = False

    def part(self, model: Any) -> None:
        """As weights and their moving averages do where Keras has put these in their place: a
        compiled evaluation consumes the weights it is given.
        """
        seen: set[int] = set()
        for variable in (*model.variables, *getattr(model.optimizer, "variables", ())):
            if id(variable._value) in seen and isinstance(variable._value, jax.Array):
                variable._value = jnp.copy(variable._value)
            seen.add(id(variable._value))

    # One program for both: each is compiled when it first runs.
    _copy: Callable[[Any, Any], tuple[Any, Any]] = staticmethod(
        jax.jit(lambda count, ring: (jnp.copy(count), jnp.copy(ring)))
    )

    def copy_tape(self, tape: Any, model: Any, result: Any) -> tuple[Any, Any] | None:
        """Copies on the device, without waiting for the step."""
        place = {id(v): i for i, v in enumerate(model.metrics_variables)}
        if id(tape.ring) not in place:
            return None
        variables = result[1][-1]
        # The step donates its state: without a copy of its own the array would be gone after the
        # next step.
        return self._copy(variables[place[id(tape.count)]], variables[place[id(tape.ring)]])

    def is_there(self, copy: tuple[Any, Any]) -> bool:
        return all(getattr(array, "is_ready", lambda: False)() for array in copy)

    def tape_before(self, tape: Any, model: Any, args: tuple[Any, ...]) -> tuple[int, Any] | None:
        """None where the execution has failed and taken its state along."""
        if any(value.is_deleted() for value in args[0][-1]):
            return None
        copy = self.copy_tape(tape, model, (None, args[0]))
        return None if copy is None else (int(copy[0]), np.asarray(copy[1]))

    def pick(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        picked = self.pick_tensor(variable.value, coordinates)
        if str(picked.dtype) not in ("float16", "bfloat16") or not self.is_traced(picked):
            return picked
        # As the variable keeps it: XLA goes on with what was not rounded yet.
        kept = jnp.finfo(picked.dtype)
        return jax.lax.reduce_precision(picked, int(kept.nexp), int(kept.nmant))

    def pick_value(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if variable.value.size <= MOST_MOVED:
            found = self.pick_tensor(np.asarray(variable.value), coordinates)
        else:
            found = self.pick(variable, coordinates)
        return np.asarray(found, np.float32)

    def pick_tensor(self, tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        if tensor.ndim == 0:
            return tensor.reshape(1)
        flat = np.ravel_multi_index(tuple(coordinates.T), tensor.shape)
        apart = {int(step) for step in np.diff(flat)} or {1}
        if len(apart) > 1 or keras.distribution.distribution() is not None:
            return tensor[tuple(coordinates.T)]
        # A slice becomes part of what it is used for; a gather is compiled by itself.
        first, end, step = int(flat[0]), int(flat[-1]) + 1, apart.pop()
        if isinstance(tensor, np.ndarray):
            return tensor.reshape(-1)[first:end:step]
        # By `[]` it takes ten times as long to trace.
        return jax.lax.slice(shaped(tensor, (tensor.size,)), (first,), (end,), (step,))

    def pick_gradient(self, gradient: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        picked = self.pick_tensor(gradient, coordinates)
        if gradient.size <= MOST_KEPT:
            return picked
        # Picks of all gradients become part of one operation where they are put together, until
        # which all gradients are kept. Nothing is joined to a sort, which leaves them in order.
        return jax.lax.sort((np.arange(picked.size, dtype=np.int32), picked), num_keys=1)[1]

    def joined(self, vectors: list[Any]) -> Any:
        if not self.is_traced(vectors[0]):
            return super().joined(vectors)
        # XLA takes twice as long to compile a concatenation of many slices, and without any would
        # make part of this again for each use.
        *vectors, last = vectors
        if not vectors:
            return last
        size, place, joined = sum(int(v.size) for v in vectors), 0, None
        for vector in vectors:
            behind = size - place - int(vector.size)
            bits = jax.lax.bitcast_convert_type(vector, np.uint32)
            bits = jax.lax.pad(bits, np.uint32(0), [(place, behind, 0)])
            joined = bits if joined is None else jax.lax.bitwise_or(joined, bits)
            place += int(vector.size)
        return jax.lax.concatenate([jax.lax.bitcast_convert_type(joined, np.float32), last], 0)

    def is_sparse(self, tensor: Any) -> bool:
        return not isinstance(tensor, jax.Array)

    def dense_part(self, tensor: Any) -> Any:
        return tensor.data if self.is_sparse(tensor) else tensor

    def square_sums(self, tensors: list[Any]) -> list[Any]:
        return _of_each([*map(jax.lax.square, self._values(tensors))], Kind.SUM, jnp.sum)

    def largest(self, tensors: list[Any]) -> list[Any]:
        return _of_each([*map(jax.lax.abs, self._values(tensors))], Kind.LARGEST, largest_of)

    def _values(self, tensors: list[Any]) -> list[Any]:
        parts = jax.lax.stop_gradient([self.dense_part(tensor) for tensor in tensors])
        return [part.astype(jnp.float32) for part in parts]

    def sizes(self, gradients: list[Any], which: list[bool], *, xla: bool) -> Sizes:
        """Never in a branch: one would split XLA's fusions, and training round otherwise."""
        values = self._values(gradients)
        small = [place for place, value in enumerate(values) if is_small(value)]
        found = Sizes([], [], [None] * len(values))
        for places in loops([int(values[place].size) for place in small]):
            _add_small(found, values, [small[place] for place in places], which)
        for place, value in enumerate(values):
            if not is_small(value):
                _add_large(found, value, place, which[place])
        return found

    def moments(self, tensor: Any) -> tuple[Any, Any]:
        if not is_small(tensor):
            return super().moments(tensor)
        tensor = jax.lax.stop_gradient(tensor)
        # From one of the values, as the squares of all may be far larger than their differences.
        one = tensor.reshape(-1)[0]
        apart = tensor - one
        size = int(tensor.size)
        sums = [Reduced(Kind.SUM, apart), Reduced(Kind.SUM, apart * apart)]
        return Awaited(Mean(size), [sums[0], one]), Awaited(Deviation(size), sums)

    def shares(self, parts: list[Any], wholes: list[Any]) -> list[Any]:
        sets = [s.astype(jnp.float32) for s in jax.lax.stop_gradient((*parts, *wholes))]
        pairs = zip(sets[: len(parts)], sets[len(parts) :], strict=True)
        if not is_small(sets[0]):
            return [OnHost.of(ratio, list(map(jnp.sum, pair))) for pair in pairs]
        return [Awaited(ratio, [Reduced(Kind.SUM, s) for s in pair]) for pair in pairs]

    def share(self, flags: Any) -> Any:
        if not is_small(flags):
            return super().share(flags)
        counted = jax.lax.stop_gradient(flags).astype(jnp.float32)
        return Awaited(ratio, [Reduced(Kind.SUM, counted), float(flags.size)])

    def nonfinite(self, tensors: list[Any]) -> Any:
        floats = [t for t in tensors if jnp.issubdtype(t.dtype, jnp.floating)]
        return composed(sum_of, [self._range(t)[2] for t in floats]) if floats else 0.0

    def extremes(self, tensor: Any) -> tuple[Any, Any]:
        return self._range(tensor)[:2]

    def _range(self, tensor: Any) -> tuple[Any, Any, Any]:
        values = jax.lax.stop_gradient(tensor).astype(jnp.float32)
        if is_small(values):
            return (
                Awaited(negative, [Reduced(Kind.LARGEST, jax.lax.neg(values))]),
                Awaited(identity, [Reduced(Kind.LARGEST, values)]),
                Awaited.sum_of(_odd(values)),
            )
        least, most = -largest_of(-values), largest_of(values)
        # A NaN is the largest of all.
        return least, most, _odd_in(values, jnp.isfinite(least) & jnp.isfinite(most))

    def gradient(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> tuple[Any, list[Any]]:
        gradient = jax.value_and_grad(self.of_values(function, variables, compiled=False))
        # One program is compiled faster than one for each operation.
        gradient = jax.jit(gradient) if compiled else gradient
        value, found = gradient([variable.value for variable in variables])
        return value, list(found)

    def for_its_shapes(self, function: Callable[[Any], Any], x: Any, model: Any) -> None:
        """Another size of batch would compile every operation once more. Code that is only ever
        run eagerly may ask for values.
        """
        if not self.is_traced_step(model):
            function(x)
            return

        def called(x: Any) -> tuple[()]:
            function(x)
            return ()

        with keras.StatelessScope():
            jax.eval_shape(called, x)

    def of_values(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> Callable[[list[np.ndarray[Any, Any]]], Any]:
        def with_values(values: list[Any]) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function()

        return jax.jit(with_values) if compiled else with_values

    @contextmanager
    def own_traces(self) -> Iterator[None]:
        """JAX compiles a loop that runs eagerly anew in every pass, and keeps each for good: some
        30 MiB for every fit of an LSTM.
        """
        thread = threading.get_ident()
        for loop in _loops:
            loop.listen(thread)
        try:
            yield
        finally:
            for loop in _loops:
                loop.forget(thread)

    def device_memory(self) -> float | None:
        device = jax.devices()[0]
        if device.platform == "cpu":
            return None
        return float((device.memory_stats() or {}).get("bytes_in_use", 0))

    def devices(self) -> list[str]:
        return [str(device) for device in jax.devices()]

    def version(self) -> str:
        return str(jax.__version__)

    def why_untappable(self, model: Any) -> str | None:
        if not jax.config.jax_check_tracer_leaks:
            return None
        return "JAX checks for leaked tracers, and taps keep some until the step is traced"

    def runs_at_once(self) -> bool:
        return bool(jax.config.jax_disable_jit)

    def is_traced(self, tensor: Any) -> bool:
        """Also inside a function that is being traced, such as a scan."""
        return isinstance(tensor, jax.core.Tracer)

    def trace_scope(self) -> Any:
        scope = getattr(jax.extend.core, "get_opaque_trace_state", None)
        return None if scope is None else scope(convention="trainsanity")

    def behind_barrier(self, tensors: list[Any]) -> list[Any]:
        # What is only looked at needs no derivative.
        return list(jax.lax.optimization_barrier(jax.lax.stop_gradient(tuple(tensors))))

    def is_dense(self, tensor: Any) -> bool:
        return isinstance(tensor, jax.Array)

    def gradients_to_see(self, gradients: list[Any]) -> list[Any]:
        """Through an operation that changes nothing, and that XLA joins to whatever makes or uses
        them: it compiles what makes a value otherwise where a barrier must get it, or a slice.
        """
        return [_as_precise(jax.lax.stop_gradient(gradient)) for gradient in gradients]

    def copies(self, tensors: list[Any], *, xla: bool) -> list[Any]:
        return [self.gradients_to_see([t])[0] if self.is_dense(t) else t for t in tensors]

    def is_traced_step(self, model: Any) -> bool:
        return bool(model.jit_compile) and not model.run_eagerly

    def processes(self, model: Any) -> int:
        return int(jax.process_count())

    def sums_and_largest(self, sums: list[Any], largest: list[Any]) -> tuple[list[Any], list[Any]]:
        sums, largest = jax.lax.stop_gradient((sums, largest))
        if not is_small((*sums, *largest)[0]):
            return [jnp.sum(t) for t in sums], [largest_of(t) for t in largest]
        parts = [Reduced(Kind.SUM, t) for t in sums] + [Reduced(Kind.LARGEST, t) for t in largest]
        found = [number for (number,) in in_loops(parts)]
        return found[: len(sums)], found[len(sums) :]

    def sums(self, vectors: list[Any]) -> list[Any]:
        if not is_small(vectors[0]):
            return super().sums(vectors)
        return [*map(Awaited.sum_of, jax.lax.stop_gradient(vectors))]

    def total(self, tensor: Any) -> Any:
        values = jax.lax.stop_gradient(jnp.asarray(tensor, jnp.float32))
        if values.size > SMALL_AND_EXACT or not values.size:
            return jnp.sum(values)
        if values.size == 1:
            return Awaited.sum_of(values)
        return Awaited(corrected, [Reduced(Kind.EXACT, values)])

    def column(self, make: Callable[..., Any], cells: Sequence[Any]) -> Any:
        return composed(make, cells)

    def columns_made(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        return columns_made(columns)


class _InTurn(jax.extend.core.Primitive):  # type: ignore[misc] # JAX is Any to mypy
    """The first of two values; in a program that is made within `left_out` the second one. An
    operation of its own costs the program nothing, as it is gone before XLA sees it.
    """

    def __init__(self) -> None:
        super().__init__("trainsanity_in_turn")
        self._local = threading.local()
        self.def_impl(lambda value, otherwise: value)
        self.def_abstract_eval(lambda value, otherwise: value)
        mlir.register_lowering(self, lambda context, value, otherwise: [value])
        ad.defjvp(self, None, None)  # what is only looked at needs no derivative

    def bind(self, *args: Any, **params: Any) -> Any:
        if getattr(self._local, "is_left_out", False):
            return args[1]
        return super().bind(*args, **params)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        self._local.is_left_out = True
        try:
            yield
        finally:
            self._local.is_left_out = False


_in_turn = _InTurn()


def _is_consumed(state: Any) -> bool:
    """Whether an execution has taken the memory of some of it."""
    return any(isinstance(v, jax.Array) and v.is_deleted() for v in jax.tree.leaves(state))


def _odd(values: Any) -> Any:
    """1.0 for elements that are NaN or infinite."""
    is_odd = jax.lax.bitwise_not(jax.lax.is_finite(values))
    return jax.lax.convert_element_type(is_odd, np.float32)


def _odd_in(values: Any, are_finite: Any) -> Any:
    """How many are NaN or infinite. It takes as long as what has shown whether any are."""
    none = np.float32(0)
    return jax.lax.cond(are_finite, lambda _: none, lambda v: jnp.sum(_odd(v)), values)


def _of_each(values: list[Any], kind: Kind, alone: Callable[[Any], Any]) -> list[Any]:
    """What each is reduced to, a scalar; large ones alone."""
    found = iter(in_loops([Reduced(kind, value) for value in values if is_small(value)]))
    return [shaped(next(found)[0], ()) if is_small(v) else alone(v) for v in values]


def _add_large(sizes: Sizes, value: Any, place: int, is_wanted: bool) -> None:
    squares = jnp.sum(value * value)
    sizes.squares.append(squares)
    sizes.nonfinite.append(_odd_in(value, jnp.isfinite(squares)))
    if is_wanted:
        sizes.largest[place] = largest_of(jnp.abs(value))


def _add_small(sizes: Sizes, values: list[Any], places: list[int], which: list[bool]) -> None:
    """In one loop, with one sum for all of them."""
    size = max(int(values[place].size) for place in places)

    def together(vectors: Iterator[Any]) -> Reduced:
        whole = (filled(vector, size, np.float32(0)) for vector in vectors)
        return Reduced(Kind.SUM, functools.reduce(jax.lax.add, whole))

    wanted = [place for place in places if which[place]]
    squares = together(jax.lax.square(values[place]) for place in places)
    odd = together(_odd(values[place]) for place in places)
    largest = [Reduced(Kind.LARGEST, jax.lax.abs(values[place])) for place in wanted]
    found = [number for (number,) in in_loops([squares, odd, *largest])]
    sizes.squares.append(found[0])
    sizes.nonfinite.append(found[1])
    for place, number in zip(wanted, found[2:], strict=True):
        sizes.largest[place] = number


def _as_precise(tensor: Any) -> Any:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return tensor
    known = jnp.finfo(tensor.dtype)
    return jax.lax.reduce_precision(tensor, int(known.nexp), int(known.nmant))


def _forgetting(primitive: Any) -> Callable[[Function, Sequence[int]], Function]:
    """Makes it, where it runs eagerly, part of a program that goes with what holds it."""

    def wrapper_of(original: Function, threads: Sequence[int]) -> Function:
        def impl(*args: Any, **params: Any) -> Any:
            if threading.get_ident() not in threads or jax.config.jax_disable_jit:
                return original(*args, **params)
            return jax.jit(lambda *given: primitive.bind(*given, **params))(*args)

        return impl

    return wrapper_of


_loops = [
    Overheard(primitive, "impl", _forgetting(primitive))
    for name in ("scan_p", "while_p", "cond_p")
    if hasattr(primitive := getattr(primitives, name, None), "impl")
]


def _travelling(model: Any, state: Any) -> Iterator[tuple[Any, Any]]:
    """Variables and their values in the state that the train function gets and gives back."""
    parts = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    for variables, values in zip(parts, state, strict=True):
        yield from zip(variables, values, strict=True)
