"""PyTorch's way of the operations that Keras does not offer."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import compress
from typing import Any, cast

import keras
import numpy as np
import torch
from keras.src.backend.torch.core import get_device
from torch.overrides import TorchFunctionMode

from trainsanity.backends.backend import Backend, MeetingPlace, Sizes, Store, side_by_side
from trainsanity.host_ring import HostRing

CONSTANTS = 64  # kept at most
FILE_BYTES = 32e6  # what is deleted stays in the file of a FileStore
STORE_SECONDS = 10.0  # after which a store that does not answer has failed


class Torch(Backend):
    def __init__(self) -> None:
        self._constants: dict[int, tuple[Any, Any]] = {}  # id of an array -> it, and its tensor
        self._thread = threading.local()  # `many`: tensors stand for those of many steps

    def in_memory(self, ring: Any, count: Any, rest: float) -> HostRing | None:
        if get_device() != "cpu":
            return None
        ring, count = (variable.value.detach().numpy() for variable in (ring, count))
        return HostRing(ring, count, rest, _as_number)

    def row(self, cells: Mapping[int, Any], width: int, rest: float) -> Any:
        values = side_by_side(cells, rest)
        filler = torch.full((width - len(values),), rest, device=get_device())
        each = [torch.as_tensor(value).detach().reshape(1).to(filler) for value in values]
        return torch.cat([*each, filler])

    def write_row(self, ring: Any, count: Any, row: Any) -> None:
        """In place; called within `observing`."""
        tensor, counter = ring.value, count.value
        at = torch.remainder(counter, len(tensor)).reshape(1).to(torch.int64)
        tensor.index_copy_(0, at, row.detach().reshape(1, -1))
        counter.add_(1)

    def read(self, variable: Any) -> np.ndarray[Any, Any]:
        value = variable.value.detach().cpu()
        # numpy knows no bfloat16.
        plain = value.float() if value.dtype == torch.bfloat16 else value
        return np.array(plain.numpy())

    def observing(self) -> AbstractContextManager[None]:
        """What is measured must not lengthen the graph that is differentiated."""
        return cast(AbstractContextManager[None], torch.no_grad())

    def peek(self, batches: Any) -> tuple[Any, Any] | None:
        """Torch's train function takes a list of batches."""
        if isinstance(batches, (list, tuple)):
            return (batches[0], batches) if batches else None
        return super().peek(batches)

    def pick(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        """Copies."""
        return self.pick_tensor(variable.value.detach(), coordinates)

    def pick_value(self, variable: Any, coordinates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Without moving the others."""
        picked = self.pick(variable, coordinates)
        value: np.ndarray[Any, Any] = picked.float().cpu().numpy()
        return value

    def pick_tensor(self, tensor: Any, coordinates: np.ndarray[Any, Any]) -> Any:
        """Copies."""
        if tensor.ndim == 0:
            return tensor.reshape(1).clone()
        flat = np.ravel_multi_index(tuple(coordinates.T), tuple(tensor.shape))
        index = torch.as_tensor(flat, device=tensor.device)
        return torch.take(tensor, index)

    def is_sparse(self, tensor: Any) -> bool:
        return bool(tensor.is_sparse)

    def dense_part(self, tensor: Any) -> Any:
        return tensor.coalesce().values() if tensor.is_sparse else tensor

    def on_host(self, tensor: Any) -> np.ndarray[Any, Any] | None:
        if not self._is_known(tensor) or tensor.is_sparse:
            return None
        array: np.ndarray[Any, Any] = tensor.detach().float().numpy()
        return array

    def total(self, tensor: Any) -> Any:
        values = torch.as_tensor(tensor)
        return self._number(values.sum(dtype=torch.float32) if values.ndim else values.float())

    def for_each(
        self, function: Callable[..., tuple[Any, ...]], arguments: list[Sequence[Any]]
    ) -> list[np.ndarray[Any, Any]]:
        self._thread.many = True
        try:
            found = torch.vmap(function)(*map(_stacked, arguments))
        finally:
            self._thread.many = False
        return [values.detach().double().numpy() for values in found]

    def vector(self, scalars: Sequence[Any]) -> Any:
        device = get_device()
        return torch.stack(
            [torch.as_tensor(s, dtype=torch.float32, device=device) for s in scalars]
        )

    def _is_known(self, tensor: Any) -> bool:
        """Whether asking for its values is no wait, and possible."""
        is_here = isinstance(tensor, torch.Tensor) and tensor.is_cpu
        return is_here and not getattr(self._thread, "many", False)

    def _number(self, scalar: Any) -> Any:
        """On the host, where that does not wait for the device."""
        return float(scalar.item()) if self._is_known(scalar) else scalar

    def number(self, scalar: Any) -> Any:
        is_scalar = isinstance(scalar, torch.Tensor) and scalar.is_cpu and scalar.ndim == 0
        return scalar.item() if is_scalar else scalar

    def nonfinite(self, tensors: list[Any]) -> Any:
        floats = [t for t in map(torch.as_tensor, tensors) if t.is_floating_point()]
        if all(self._is_known(t) and math.isfinite(t.sum().item()) for t in floats):
            return 0.0
        return sum((self.total(~torch.isfinite(t)) for t in floats), 0.0)

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """Kept, as a step is made of operations that each cost time."""
        if id(array) not in self._constants:
            if len(self._constants) >= CONSTANTS:
                self._constants.clear()
            tensor = torch.from_numpy(array.copy()).to(get_device())
            self._constants[id(array)] = (array, tensor)
        return self._constants[id(array)][1]

    def finite(self, tensor: Any) -> Any:
        return torch.nan_to_num(tensor, nan=1.0, posinf=1.0, neginf=1.0)

    def square_sums(self, tensors: list[Any]) -> list[Any]:
        values = [self.dense_part(tensor).detach().reshape(-1).float() for tensor in tensors]
        return [torch.dot(v, v) for v in values]

    def gradient(
        self, function: Callable[[], Any], variables: list[Any], *, compiled: bool
    ) -> tuple[Any, list[Any]]:
        value = function()
        if not value.requires_grad:
            return value, [None] * len(variables)
        values = [variable.value for variable in variables]
        return value, list(torch.autograd.grad(value, values, allow_unused=True))

    def device_memory(self) -> float | None:
        return float(torch.cuda.memory_allocated()) if torch.cuda.is_available() else None

    def devices(self) -> list[str]:
        if torch.cuda.is_available():
            return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ["cpu"]

    def version(self) -> str:
        return str(torch.__version__)

    def generator_state(self) -> Any:
        """Of the generator on the CPU, and of those of all GPUs."""
        return (
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        )

    def put_back_generator(self, state: Any) -> None:
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])

    def beside_keras(self, owner: Any) -> list[Callable[[], Any]]:
        kept: list[Callable[[], Any]] = []
        for value in vars(owner).values():
            if isinstance(value, torch.Generator):
                kept.append(functools.partial(value.set_state, value.get_state()))
        if isinstance(owner, torch.nn.Module):
            for buffer in owner.buffers():
                kept.append(functools.partial(buffer.data.copy_, buffer.detach().clone()))
        return kept

    def is_dense(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and not tensor.is_sparse

    def is_traced_step(self, model: Any) -> bool:
        return bool(model.jit_compile)

    def follows_code(self, model: Any) -> bool:
        """As torch.compile does."""
        return bool(model.jit_compile and not model.run_eagerly)

    @contextlib.contextmanager
    def uncompiled(self, model: Any) -> Iterator[None]:
        own = model.__dict__
        before, own["_jit_compile"] = own["_jit_compile"], False
        try:
            yield
        finally:
            own["_jit_compile"] = before

    def watched_reads(self, read: dict[int, Any]) -> AbstractContextManager[None]:
        mode: AbstractContextManager[None] = _Reads(read)
        return mode

    def why_untappable(self, model: Any) -> str | None:
        """The compiler would take many times as long for our lines as for the step, and fuse the
        step's own operations otherwise, which rounds them otherwise.
        """
        return "torch.compile would compile what measures it" if self.follows_code(model) else None

    def processes(self, model: Any) -> int:
        distributed = torch.distributed
        together = distributed.is_available() and distributed.is_initialized()
        return int(distributed.get_world_size()) if together else 1

    def why_not_in_this_process(self, model: Any) -> str | None:
        if self.process() == 0 or self.meeting_place() is not None:
            return None
        return f"this is process {self.process()}, and process 0 reports for all"

    def process(self) -> int:
        return int(torch.distributed.get_rank()) if self.processes(None) > 1 else 0

    def meeting_place(self) -> MeetingPlace | None:
        """The store in which the processes have found each other."""
        from torch.distributed import distributed_c10d as c10d

        if not all(hasattr(c10d.Store, name) for name in ("check", "clone", "delete_key")):
            return None
        store = c10d._get_default_store()
        plain = getattr(store, "_underlying_non_prefix_store", store)
        if isinstance(plain, torch.distributed.FileStore):
            # Each of its methods holds its locks for a moment only. A clone would be counted as
            # one more process that ends, and the last one takes the file away.
            return MeetingPlace(lambda: cast(Store, store), FILE_BYTES)

        def connected() -> Store:
            """A connection of its own: `get` and `wait` keep others out for as long as they
            last.
            """
            clone = store.clone()
            clone.set_timeout(timedelta(seconds=STORE_SECONDS))
            return cast(Store, clone)

        return MeetingPlace(connected, math.inf)

    def sizes(self, gradients: list[Any], which: list[bool], *, xla: bool) -> Sizes:
        squares = torch.stack(self.square_sums(gradients)).sum()
        count = self._count_nonfinite(gradients, torch.isfinite(squares))
        wanted = iter(self.largest([*compress(gradients, which)]))
        return Sizes([squares], [count], [next(wanted) if w else None for w in which])

    def _count_nonfinite(self, tensors: list[Any], finite: Any) -> Any:
        # Elsewhere asking would wait for the device.
        if finite.device.type == "cpu" and bool(finite):
            return torch.zeros(())
        values = [self.dense_part(t) for t in tensors]
        return sum((~torch.isfinite(v)).sum().float() for v in values)

    def largest(self, tensors: list[Any]) -> list[Any]:
        return [self.dense_part(tensor).detach().abs().max().float() for tensor in tensors]

    def unshared(self, structure: Any) -> Any:
        """Keras multiplies sample weights with the mask in place (keras/src/losses/loss.py,
        `apply_mask`).
        """
        if structure is None:
            return None
        if isinstance(structure, torch.Tensor):
            return structure.clone()
        return keras.tree.map_structure(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, structure
        )


def _stacked(values: Sequence[Any]) -> Any:
    if isinstance(values[0], (int, float)):
        return torch.tensor(values, dtype=torch.float32)
    return torch.stack([torch.as_tensor(value) for value in values])


def _as_number(scalar: Any) -> Any:
    return scalar.item() if isinstance(scalar, torch.Tensor) else scalar


class _Reads(TorchFunctionMode):  # type: ignore[misc] # torch is Any to mypy
    """Notes the parameters that torch's functions are given: tensors that nothing has made and a
    gradient is wanted of.
    """

    def __init__(self, read: dict[int, Any]) -> None:
        super().__init__()
        self._read = read

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for given in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(given, torch.nn.Parameter) and given.requires_grad:
                self._read.setdefault(id(given), (given, None))
        return function(*args, **(kwargs or {}))
