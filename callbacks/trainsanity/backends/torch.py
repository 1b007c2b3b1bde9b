"""PyTorch's way of the operations that Keras does not offer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

import keras
import numpy as np
import torch
from keras.src.backend.torch.core import get_device

READABLE_IN_EPOCH = True  # variables hold their values between steps
HAS_GRADIENT_BOUNDARY = False  # a value made inside the gradient may be used outside


def row(values: list[Any], width: int, rest: float) -> Any:
    """Scalars of any type, then `rest`, as a float32 tensor of shape (width,)."""
    filler = torch.full((width - len(values),), rest, device=get_device())
    cells = [torch.as_tensor(value).detach().reshape(1).to(filler) for value in values]
    return torch.cat([*cells, filler])


def write_row(ring: Any, count: Any, row: Any) -> None:
    """Writes one row of the ring in place and advances the counter."""
    with torch.no_grad():
        tensor, counter = ring.value, count.value
        at = torch.remainder(counter, tensor.shape[0]).reshape(1).to(torch.int64)
        tensor.index_copy_(0, at, row.detach().reshape(1, -1).to(tensor.device))
        counter.add_(1)


def read(variable: Any) -> np.ndarray[Any, Any]:
    """The value of a Keras variable on the host."""
    value = variable.value.detach().cpu()
    # numpy knows no bfloat16.
    plain = value.float() if value.dtype == torch.bfloat16 else value
    return np.array(plain.numpy())


def read_in_step(variable: Any, model: Any, state: Any) -> np.ndarray[Any, Any]:
    """The same as `read`: variables hold their values at any time."""
    return read(variable)


def copy_tape(tape: Any, model: Any, result: Any) -> None:
    """Nothing: the tape can be read at any time."""


def tape_before(tape: Any, model: Any, args: tuple[Any, ...]) -> None:
    """Nothing: the tape can be read at any time."""


def observing() -> AbstractContextManager[None]:
    """What is measured must not lengthen the graph that is differentiated."""
    return cast(AbstractContextManager[None], torch.no_grad())


@contextlib.contextmanager
def outside_trace() -> Iterator[None]:
    """Nothing: Keras builds everything before the first step."""
    yield


def peek(batches: Any) -> tuple[Any, Any] | None:
    """The first batch and what still gives it: torch's train function takes a list of batches."""
    if isinstance(batches, (list, tuple)):
        return (batches[0], batches) if batches else None
    for batch in batches:
        return batch, itertools.chain([batch], batches)
    return None


def catch_sample(run: Any, args: tuple[Any, ...]) -> None:
    """Nothing: `peek` sees every batch."""


def caught_sample(run: Any) -> None:
    """Nothing: `peek` sees every batch."""


def pick(variable: Any, coordinates: np.ndarray[Any, Any], *, xla: bool) -> Any:
    """Copies of elements of a Keras variable; coordinates have shape (k, rank)."""
    return pick_tensor(variable.value.detach(), coordinates)


def pick_value(variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Elements of a Keras variable on the host, without moving the others."""
    value: np.ndarray[Any, Any] = pick(variable, coordinates, xla=False).float().cpu().numpy()
    return value


def pick_tensor(tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
    """Copies of elements of a dense tensor; coordinates have shape (k, rank)."""
    if tensor.ndim == 0:
        return tensor.reshape(1).clone()
    flat = np.ravel_multi_index(tuple(coordinates.T), tuple(tensor.shape))
    index = torch.as_tensor(flat, device=tensor.device)
    return torch.take(tensor, index)


def is_sparse(tensor: Any) -> bool:
    """Whether a gradient lists only the rows that were touched."""
    return bool(tensor.is_sparse)


def dense_part(tensor: Any) -> Any:
    """The tensor, or the touched rows of a sparse gradient."""
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def square_sum(tensor: Any) -> Any:
    """Sum of squares as float32; of the touched rows for a sparse gradient."""
    values = dense_part(tensor)
    flat = values.detach().reshape(-1).float()
    return torch.dot(flat, flat)


def end_of_data_errors() -> tuple[type[BaseException], ...]:
    """What the train function raises to say that the data has ended."""
    return (StopIteration,)


def forward_errors() -> tuple[type[Exception], ...]:
    """What an eager call may raise besides Python's own errors."""
    return ()


def gradient(function: Callable[[], Any], variables: list[Any]) -> tuple[Any, list[Any]]:
    """What `function()` returns, and its gradient by each variable; None where it has none."""
    value = function()
    if not value.requires_grad:
        return value, [None] * len(variables)
    values = [variable.value for variable in variables]
    return value, list(torch.autograd.grad(value, values, allow_unused=True))


def device_memory() -> float | None:
    """Bytes in use on the current GPU, or None where there is none."""
    return float(torch.cuda.memory_allocated()) if torch.cuda.is_available() else None


def devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ["cpu"]


def version() -> str:
    return str(torch.__version__)


def generator_state() -> Any:
    """State of PyTorch's global generator on the CPU, and of those of all GPUs."""
    return (
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def put_back_generator(state: Any) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def is_traced(tensor: Any) -> bool:
    """Whether a tensor stands for a value inside a graph that is being made."""
    return False


@contextlib.contextmanager
def watched_reads(read: dict[int, Any], stack: list[Any]) -> Iterator[None]:
    """Nothing: parameters of plain modules are seen by Keras' TorchModuleWrapper alone."""
    yield


def behind_barrier(tensors: list[Any]) -> list[Any]:
    """Nothing: PyTorch runs every operation as it is written."""
    return tensors


def is_dense(tensor: Any) -> bool:
    """Whether this is an ordinary tensor, not None nor a list of touched rows."""
    return isinstance(tensor, torch.Tensor) and not tensor.is_sparse


def copies(tensors: list[Any], *, xla: bool) -> list[Any]:
    """The same values as tensors of their own, whose use does not change how others are
    compiled.
    """
    return tensors


def is_traced_step(model: Any) -> bool:
    return bool(model.jit_compile)


def why_untappable(model: Any) -> str | None:
    return None


def processes(model: Any) -> int:
    """How many processes train one model."""
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if together else 1


def why_not_in_this_process(model: Any) -> str | None:
    """Why this one of several processes must be left alone."""
    if processes(model) == 1 or torch.distributed.get_rank() == 0:
        return None
    return f"this is process {torch.distributed.get_rank()}, and process 0 reports for all"


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
    """Never: taps run as they are called, so that a failure is seen there."""
    return False


def count_nonfinite(tensors: list[Any], finite: Any, *, xla: bool) -> Any:
    """Elements that are NaN or infinite; only counted where `finite` does not say: none."""
    if finite.device.type == "cpu" and bool(finite):  # elsewhere asking would wait for the device
        return torch.zeros(())
    values = [dense_part(t) for t in tensors]
    return sum((~torch.isfinite(v)).sum().float() for v in values)


def arrival(batch: Any, *, xla: bool) -> None:
    """Nothing: Keras fetches the batch on the host before the step."""


def largest(tensor: Any) -> Any:
    """Largest absolute element, as float32."""
    values = dense_part(tensor)
    return values.detach().abs().max().float()


def unshared(structure: Any) -> Any:
    """The same values, out of reach of what is done in place: Keras multiplies sample weights with
    the mask so (keras/src/losses/loss.py, `apply_mask`).
    """
    return keras.tree.map_structure(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, structure
    )
