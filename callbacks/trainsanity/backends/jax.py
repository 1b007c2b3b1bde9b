"""JAX's way of the operations that Keras does not offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from trainsanity.backends.backend import Backend

# Elements of a variable that are rather moved to the host as a whole: to pick some, a program
# is compiled for every shape, which takes longer.
MOST_MOVED = 1_000_000


class Jax(Backend):
    # Within an epoch Keras empties the variables; the state travels as arguments.
    READABLE_IN_EPOCH = False
    HAS_GRADIENT_BOUNDARY = True

    def row(self, values: list[Any], width: int, rest: float) -> Any:
        filler = jnp.full(width - len(values), rest, jnp.float32)
        cells = [jnp.asarray(value, jnp.float32).reshape(1) for value in values]
        return jnp.concatenate([*cells, filler])

    def write_row(self, ring: Any, count: Any, row: Any) -> None:
        """In the scope that carries the metrics' variables."""
        at = jnp.mod(count.value, ring.shape[0])
        ring.assign(ring.value.at[at].set(row))
        count.assign(count.value + 1)

    def read(self, variable: Any) -> np.ndarray[Any, Any]:
        """Between epochs only."""
        return np.asarray(variable.value)

    def read_in_step(self, variable: Any, model: Any, state: Any) -> np.ndarray[Any, Any]:
        """Out of the state right before a step, else from the variable itself."""
        if state is None:
            return self.read(variable)
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
        return self.read(variable)  # it is no part of the state that travels

    def copy_tape(self, tape: Any, model: Any, result: Any) -> tuple[Any, Any] | None:
        """Copies on the device, without waiting for the step."""
        place = {id(v): i for i, v in enumerate(model.metrics_variables)}
        if id(tape.ring) not in place:
            return None
        variables = result[1][-1]
        # The step donates its state: without a copy of its own the array would be gone after the
        # next step.
        return jnp.copy(variables[place[id(tape.count)]]), jnp.copy(variables[place[id(tape.ring)]])

    def tape_before(self, tape: Any, model: Any, args: tuple[Any, ...]) -> tuple[int, Any] | None:
        """None where the execution has failed and taken its state along."""
        if any(value.is_deleted() for value in args[0][-1]):
            return None
        copy = self.copy_tape(tape, model, (None, args[0]))
        return None if copy is None else (int(copy[0]), np.asarray(copy[1]))

    def pick(self, variable: Any, coordinates: np.ndarray[Any, Any], *, xla: bool) -> Any:
        return self.pick_tensor(variable.value, coordinates)

    def pick_value(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if variable.value.size <= MOST_MOVED:
            found = self.pick_tensor(np.asarray(variable.value), coordinates)
        else:
            found = self.pick(variable, coordinates, xla=False)
        return np.asarray(found, np.float32)

    def pick_tensor(self, tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        if tensor.ndim == 0:
            return tensor.reshape(1)
        return tensor[tuple(coordinates.T)]

    def is_sparse(self, tensor: Any) -> bool:
        return not isinstance(tensor, jax.Array)

    def dense_part(self, tensor: Any) -> Any:
        return tensor.data if self.is_sparse(tensor) else tensor

    def square_sum(self, tensor: Any) -> Any:
        values = self.dense_part(tensor)
        return jnp.sum(jnp.square(values.astype(jnp.float32)))

    def gradient(self, function: Callable[[], Any], variables: list[Any]) -> tuple[Any, list[Any]]:
        def of_values(values: list[Any]) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function()

        value, found = jax.value_and_grad(of_values)([variable.value for variable in variables])
        return value, list(found)

    def device_memory(self) -> float | None:
        device = jax.devices()[0]
        if device.platform == "cpu":
            return None
        return float((device.memory_stats() or {}).get("bytes_in_use", 0))

    def devices(self) -> list[str]:
        return [str(device) for device in jax.devices()]

    def version(self) -> str:
        return str(jax.__version__)

    def is_traced(self, tensor: Any) -> bool:
        """Also inside a function that is being traced, such as a scan."""
        return isinstance(tensor, jax.core.Tracer)

    def behind_barrier(self, tensors: list[Any]) -> list[Any]:
        return list(jax.lax.optimization_barrier(tuple(tensors)))

    def is_dense(self, tensor: Any) -> bool:
        return isinstance(tensor, jax.Array)

    def copies(self, tensors: list[Any], *, xla: bool) -> list[Any]:
        return [self.behind_barrier([t])[0] if self.is_dense(t) else t for t in tensors]

    def is_traced_step(self, model: Any) -> bool:
        return bool(model.jit_compile) and not model.run_eagerly

    def processes(self, model: Any) -> int:
        return int(jax.process_count())

    def count_nonfinite(self, tensors: list[Any], finite: Any, *, xla: bool) -> Any:
        """Never in a branch: one would split XLA's fusions, and training round otherwise."""
        values = [self.dense_part(t) for t in tensors]
        return sum(jnp.sum(~jnp.isfinite(v), dtype=jnp.float32) for v in values)

    def largest(self, tensor: Any) -> Any:
        values = self.dense_part(tensor)
        return jnp.max(jnp.abs(values)).astype(jnp.float32)
