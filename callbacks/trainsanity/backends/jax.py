"""JAX's way of the operations that Keras does not offer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

READABLE_IN_EPOCH = (
    False  # within an epoch Keras empties the variables; the state travels as arguments
)
HAS_GRADIENT_BOUNDARY = True  # a value made inside the gradient leaves it only through a variable


def row(values: list[Any], width: int, rest: float) -> Any:
    """Scalars of any type, then `rest`, as a float32 tensor of shape (width,)."""
    filler = jnp.full(width - len(values), rest, jnp.float32)
    cells = [jnp.asarray(value, jnp.float32).reshape(1) for value in values]
    return jnp.concatenate([*cells, filler])


# Elements of a variable that are rather moved to the host as a whole: to pick some, a program
# is compiled for every shape, which takes longer.
MOST_MOVED = 1_000_000
ONE_PROGRAM = "several processes run one program together, which must be the same in all of them"


def write_row(ring: Any, count: Any, row: Any) -> None:
    """Writes one row of the ring and advances the counter, in the scope that carries the metrics'
    variables.
    """
    at = jnp.mod(count.value, ring.shape[0])
    ring.assign(ring.value.at[at].set(row))
    count.assign(count.value + 1)


def read(variable: Any) -> np.ndarray[Any, Any]:
    """The value of a Keras variable on the host, between epochs."""
    return np.asarray(variable.value)


def read_in_step(variable: Any, model: Any, state: Any) -> np.ndarray[Any, Any]:
    """The value of a Keras variable: out of the state right before a step, else from the variable
    itself.
    """
    if state is None:
        return read(variable)
    parts = zip(
        (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ),
        state,
        strict=True,
    )
    for variables, values in parts:
        for own, value in zip(variables, values, strict=True):
            if own is variable:
                return np.asarray(value)
    return read(variable)  # it is no part of the state that travels


def copy_tape(tape: Any, model: Any, result: Any) -> tuple[Any, Any] | None:
    """Copies counter and ring out of the new state, on the device, without waiting for the step."""
    place = {id(v): i for i, v in enumerate(model.metrics_variables)}
    if id(tape.ring) not in place:
        return None
    variables = result[1][-1]
    # The step donates its state: without a copy of its own the array would be gone after the next
    # step.
    return jnp.copy(variables[place[id(tape.count)]]), jnp.copy(variables[place[id(tape.ring)]])


def tape_before(tape: Any, model: Any, args: tuple[Any, ...]) -> tuple[int, Any] | None:
    """Counter and ring out of the state that an execution is about to get, on the host; None where
    the execution has failed and taken it along.
    """
    if any(value.is_deleted() for value in args[0][-1]):
        return None
    copy = copy_tape(tape, model, (None, args[0]))
    return None if copy is None else (int(copy[0]), np.asarray(copy[1]))


@contextlib.contextmanager
def observing() -> Iterator[None]:
    """Nothing: what is measured leaves the gradient as an auxiliary result, which is not
    differentiated.
    """
    yield


@contextlib.contextmanager
def outside_trace() -> Iterator[None]:
    """Nothing: Keras builds everything before it traces a step."""
    yield


def peek(iterator: Any) -> tuple[Any, Iterator[Any]] | None:
    """The next batch and an iterator that still gives it; None where there is none."""
    for batch in iterator:
        return batch, itertools.chain([batch], iterator)
    return None


def catch_sample(run: Any, args: tuple[Any, ...]) -> None:
    """Nothing: `peek` sees every batch."""


def caught_sample(run: Any) -> None:
    """Nothing: `peek` sees every batch."""


def pick(variable: Any, coordinates: np.ndarray[Any, Any], *, xla: bool) -> Any:
    """Elements of a Keras variable; coordinates have shape (k, rank)."""
    return pick_tensor(variable.value, coordinates)


def pick_value(variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Elements of a Keras variable on the host, between epochs."""
    if variable.value.size <= MOST_MOVED:
        found = pick_tensor(np.asarray(variable.value), coordinates)
    else:
        found = pick(variable, coordinates, xla=False)
    return np.asarray(found, np.float32)


def pick_tensor(tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
    """Elements of an array; coordinates have shape (k, rank)."""
    if tensor.ndim == 0:
        return tensor.reshape(1)
    return tensor[tuple(coordinates.T)]


def is_sparse(tensor: Any) -> bool:
    """Whether a gradient lists only the rows that were touched."""
    return not isinstance(tensor, jax.Array)


def dense_part(tensor: Any) -> Any:
    """The tensor, or the touched rows of a sparse gradient."""
    return tensor.data if is_sparse(tensor) else tensor


def square_sum(tensor: Any) -> Any:
    """Sum of squares as float32; of the touched rows for a sparse gradient."""
    values = dense_part(tensor)
    return jnp.sum(jnp.square(values.astype(jnp.float32)))


def end_of_data_errors() -> tuple[type[BaseException], ...]:
    """What the train function raises to say that the data has ended."""
    return (StopIteration,)


def forward_errors() -> tuple[type[Exception], ...]:
    """What an eager call may raise besides Python's own errors."""
    return ()


def gradient(function: Callable[[], Any], variables: list[Any]) -> tuple[Any, list[Any]]:
    """What `function()` returns, and its gradient by each variable."""

    def of_values(values: list[Any]) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function()

    value, found = jax.value_and_grad(of_values)([variable.value for variable in variables])
    return value, list(found)


def device_memory() -> float | None:
    """Bytes in use on the first accelerator, or None where there is none."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    return float((device.memory_stats() or {}).get("bytes_in_use", 0))


def devices() -> list[str]:
    return [str(device) for device in jax.devices()]


def version() -> str:
    return str(jax.__version__)


def generator_state() -> None:
    """Nothing: JAX has no global generator."""


def put_back_generator(state: Any) -> None:
    """Nothing: JAX has no global generator."""


def is_traced(tensor: Any) -> bool:
    """Whether an array stands for a value inside a function that is being traced, such as
    a scan.
    """
    return isinstance(tensor, jax.core.Tracer)


@contextlib.contextmanager
def watched_reads(read: dict[int, Any], stack: list[Any]) -> Iterator[None]:
    """Nothing: JAX has no variables of its own."""
    yield


def behind_barrier(tensors: list[Any]) -> list[Any]:
    """The same values, of which XLA cannot make the code that computes them anew.

    Without it the compiler may fuse a value that is also observed in another way, and round it
    otherwise.
    """
    return list(jax.lax.optimization_barrier(tuple(tensors)))


def is_dense(tensor: Any) -> bool:
    """Whether this is an ordinary tensor, not None nor a list of touched rows."""
    return isinstance(tensor, jax.Array)


def copies(tensors: list[Any], *, xla: bool) -> list[Any]:
    """The same values as tensors of their own, whose use does not change how others are
    compiled.
    """
    return [behind_barrier([t])[0] if is_dense(t) else t for t in tensors]


def is_traced_step(model: Any) -> bool:
    return bool(model.jit_compile) and not model.run_eagerly


def why_untappable(model: Any) -> str | None:
    return None


def processes(model: Any) -> int:
    """How many processes train one model."""
    return int(jax.process_count())


def why_not_in_this_process(model: Any) -> str | None:
    """Why this one of several processes must be left alone."""
    return None if processes(model) == 1 else ONE_PROGRAM


def replicas(model: Any) -> int:
    """One: what is measured in a process is of all that it computes."""
    return 1


def copies_of(variable: Any) -> list[Any]:
    """What holds a Keras variable's value: the variable alone."""
    return [variable]


def with_all_replicas(function: Callable[[list[Any]], None], own: Any) -> None:
    """Never called, as there is one replica."""
    function([own])


def is_our_failure(error: BaseException) -> bool:
    """Never: no operation of ours can fail once it is compiled, and a step that failed has lost its
    state.
    """
    return False


def count_nonfinite(tensors: list[Any], finite: Any, *, xla: bool) -> Any:
    """Elements that are NaN or infinite. Never in a branch: one would split XLA's fusions, and
    training round otherwise.
    """
    values = [dense_part(t) for t in tensors]
    return sum(jnp.sum(~jnp.isfinite(v), dtype=jnp.float32) for v in values)


def arrival(batch: Any, *, xla: bool) -> None:
    """Nothing: Keras fetches the batch on the host before the step."""


def largest(tensor: Any) -> Any:
    """Largest absolute element, as float32."""
    values = dense_part(tensor)
    return jnp.max(jnp.abs(values)).astype(jnp.float32)


def unshared(structure: Any) -> Any:
    """The same: nothing is changed in place."""
    return structure
