"""JAX's way of the operations that Keras does not offer."""

from __future__ import annotations

import threading
import weakref
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

from trainsanity.backends.backend import Backend, OnHost, ratio, side_by_side
from trainsanity.backends.jax_reductions import (
    Awaited,
    Deviation,
    Mean,
    Missing,
    columns_made,
    in_loops,
    is_small,
    largest_of,
    negative,
    shaped,
)
from trainsanity.overheard import Function, Overheard

# Elements of a variable that are rather moved to the host as a whole: to pick some, a program
# is compiled for every shape, which takes longer.
MOST_MOVED = 1_000_000
TOGETHER = 8  # gradients that are looked at in one loop: all are kept until it runs
# As Keras names the parts of its state; an evaluation has those without the optimizer's.
STATE = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)


class Jax(Backend):
    # Within an epoch Keras empties the variables; the state travels as arguments.
    TAPE_DEPTH = 256  # all of it is copied for every reading
    READABLE_IN_EPOCH = False
    HAS_GRADIENT_BOUNDARY = True
    COMPILES_OPERATIONS = True

    def __init__(self) -> None:
        # Id of a tensor -> itself and its sizes, as long as it lives.
        self._sizes_of: dict[int, tuple[weakref.ref[Any], tuple[Any, Any, Any]]] = {}

    def row(self, cells: Mapping[int, Any], width: int, rest: float) -> Any:
        values = side_by_side(cells, rest)
        numbers = {i: v for i, v in enumerate(values) if isinstance(v, (int, float))}
        fixed = np.full(width, rest, np.float32)
        fixed[list(numbers)] = list(numbers.values())
        scalars = {
            i: shaped(jnp.asarray(v, jnp.float32), ())
            for i, v in enumerate(values)
            if i not in numbers
        }
        places = jax.lax.iota(np.int32, width)
        if scalars and not self.is_traced(places):
            return (
                jnp.asarray(fixed)
                .at[np.array([*scalars], np.int32)]
                .set(jnp.stack([*scalars.values()]))
            )
        # XLA compiles each part of a long concatenation by itself; choices become one program.
        row, here = jnp.asarray(fixed), np.eye(width, dtype=bool)
        for i, scalar in scalars.items():
            row = jax.lax.select(here[i], jax.lax.broadcast(scalar, (width,)), row)
        return row

    def not_differentiated(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: jax.lax.stop_gradient(value) if isinstance(value, jax.Array) else value
            for name, value in cells.items()
        }

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
            otherwise = np.asarray(otherwise, value.dtype)
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
        return tensor.reshape(-1)[flat[0] : flat[-1] + 1 : apart.pop()]

    def pick_gradient(self, gradient: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        picked = self.pick_tensor(gradient, coordinates)
        if is_small(gradient):
            return picked
        # Picks of all gradients become part of one operation where they are put together, until
        # which all gradients are kept. Nothing is joined to a sort, which leaves them in order.
        return jax.lax.sort((np.arange(picked.size, dtype=np.int32), picked), num_keys=1)[1]

    def is_sparse(self, tensor: Any) -> bool:
        return not isinstance(tensor, jax.Array)

    def dense_part(self, tensor: Any) -> Any:
        return tensor.data if self.is_sparse(tensor) else tensor

    def square_sums(self, tensors: list[Any]) -> list[Any]:
        unknown = [tensor for tensor in tensors if not self._is_known(tensor)]
        small = [tensor for tensor in unknown if is_small(self.dense_part(tensor))]
        small.sort(key=lambda tensor: -int(self.dense_part(tensor).size))
        for start in range(0, len(small), TOGETHER):
            self._look_at(small[start : start + TOGETHER])
        return [self._sizes(tensor)[0] for tensor in tensors]

    def largest(self, tensor: Any) -> Any:
        return self._sizes(tensor)[2]

    def count_nonfinite(self, tensors: list[Any], finite: Any, *, xla: bool) -> Any:
        """Never in a branch: one would split XLA's fusions, and training round otherwise."""
        return sum(self._sizes(tensor)[1] for tensor in tensors)

    def _sizes(self, tensor: Any) -> tuple[Any, Any, Any]:
        """Sum of squares, elements that are not finite, largest absolute one: traced once, for
        they are asked for one by one.
        """
        if not self._is_known(tensor):
            self._look_at([tensor])
        return self._sizes_of[id(tensor)][1]

    def _look_at(self, tensors: list[Any]) -> None:
        for tensor, sizes in zip(tensors, self._new_sizes(tensors), strict=True):
            self._sizes_of[id(tensor)] = (weakref.ref(tensor), sizes)
            weakref.finalize(tensor, self._sizes_of.pop, id(tensor), None)

    def _is_known(self, tensor: Any) -> bool:
        known = self._sizes_of.get(id(tensor))
        return known is not None and known[0]() is tensor

    def _new_sizes(self, tensors: list[Any]) -> list[tuple[Any, Any, Any]]:
        """Of one tensor, or of several small ones."""
        parts = jax.lax.stop_gradient([self.dense_part(tensor) for tensor in tensors])
        values = [part.astype(jnp.float32) for part in parts]
        if not is_small(values[0]):
            return [_of_large(v) for v in values]
        squares, sizes = [v * v for v in values], [jnp.abs(v) for v in values]
        sums, most = in_loops([*squares, *map(_finite, values)], sizes)
        count = len(values)
        odd = [float(v.size) - s for v, s in zip(values, sums[count:], strict=True)]
        return list(zip(sums[:count], odd, most, strict=True))

    def moments(self, tensor: Any) -> tuple[Any, Any]:
        if not is_small(tensor):
            return super().moments(tensor)
        tensor = jax.lax.stop_gradient(tensor)
        # From one of the values, as the squares of all may be far larger than their differences.
        one = tensor.reshape(-1)[0]
        apart = tensor - one
        size = int(tensor.size)
        mean = Awaited([apart], [], Mean(size), [one])
        return mean, Awaited([apart, apart * apart], [], Deviation(size))

    def shares(self, parts: list[Any], wholes: list[Any]) -> list[Any]:
        sets = [s.astype(jnp.float32) for s in jax.lax.stop_gradient((*parts, *wholes))]
        pairs = zip(sets[: len(parts)], sets[len(parts) :], strict=True)
        if not is_small(sets[0]):
            return [OnHost.of(ratio, list(map(jnp.sum, pair))) for pair in pairs]
        return [Awaited(pair, [], ratio) for pair in pairs]

    def share(self, flags: Any) -> Any:
        if not is_small(flags):
            return super().share(flags)
        counted = jax.lax.stop_gradient(flags).astype(jnp.float32)
        return Awaited([counted], [], ratio, [float(flags.size)])

    def nonfinite(self, tensors: list[Any]) -> Any:
        floats = [t for t in tensors if jnp.issubdtype(t.dtype, jnp.floating)]
        if not floats or not all(map(is_small, floats)):
            return sum((self._range(t)[2] for t in floats), 0.0)
        finite = [_finite(t) for t in jax.lax.stop_gradient(floats)]
        return Awaited(finite, [], Missing(sum(int(t.size) for t in floats)))

    def extremes(self, tensor: Any) -> tuple[Any, Any]:
        return self._range(tensor)[:2]

    def _range(self, tensor: Any) -> tuple[Any, Any, Any]:
        values = jax.lax.stop_gradient(tensor).astype(jnp.float32)
        if is_small(values):
            return (
                Awaited([], [-values], negative),
                Awaited([], [values]),
                Awaited([_finite(values)], [], Missing(int(values.size))),
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
        return in_loops(sums, largest)

    def sums(self, vectors: list[Any]) -> list[Any]:
        if not is_small(vectors[0]):
            return super().sums(vectors)
        vectors = jax.lax.stop_gradient(vectors)
        return [Awaited([vector], []) for vector in vectors]

    def column(self, make: Callable[..., Any], cells: Sequence[Any]) -> Any:
        return OnHost.of(make, cells)

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


def _finite(values: Any) -> Any:
    """1.0 for elements that are neither NaN nor infinite."""
    return jax.lax.is_finite(values).astype(jnp.float32)


def _odd_in(values: Any, are_finite: Any) -> Any:
    """How many are NaN or infinite. It takes as long as what has shown whether any are."""
    none = np.float32(0)
    return jax.lax.cond(are_finite, lambda _: none, lambda v: jnp.sum(1.0 - _finite(v)), values)


def _of_large(values: Any) -> tuple[Any, Any, Any]:
    squares = jnp.sum(values * values)
    return squares, _odd_in(values, jnp.isfinite(squares)), largest_of(jnp.abs(values))


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
