"""The order of the data: fingerprints of batches as they enter the step."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity.backends.backend import Backend
from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.recording import tensors_of
from trainsanity.tape import TapeRows

ELEMENTS = 32  # of each row, evenly spread, that go into the fingerprint
NAMES = ("_fingerprint:rows", "_fingerprint:places")
MOST_DISTINCT = 4096  # batches of an epoch that are told apart, so that memory stays flat


class DataOrder(Probe):
    """Makes the audit `data_epoch` from two weighted sums over (a part of) every row of a batch."""

    name = "data_order"
    every_batch = True
    only_inputs = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._seen = Fingerprints()

    def trace_loss(self, step: Step) -> Columns:
        inputs = tensors_of(step.x)[:2]
        found = [_sums(self.run.backend, x) for x in inputs if len(x.shape) >= 1]
        return dict(zip(NAMES, _joined(found), strict=True)) if found else {}

    see_step = trace_loss

    def trace_loss_of_many(self, steps: Sequence[Step]) -> Mapping[str, Sequence[float]]:
        inputs = [
            [self.run.backend.on_host(x) for x in tensors_of(step.x)[:2] if len(x.shape) >= 1]
            for step in steps
        ]
        if any(array is None for arrays in inputs for array in arrays):
            return super().trace_loss_of_many(steps)
        # For each input the two sums of each step.
        found = [_sums_of_arrays(np.stack(arrays)) for arrays in zip(*inputs, strict=True)]
        if not found:
            return {}
        return dict(zip(NAMES, _joined(found), strict=True))

    def on_epoch_begin(self, epoch: int) -> None:
        self._seen = Fingerprints()

    def on_rows(self, rows: TapeRows) -> Columns:
        parts = [rows.columns.get(name) for name in (*NAMES, "batch/size")]
        columns = [part for part in parts if part is not None]
        if len(columns) == len(parts):
            batches = np.stack(columns, axis=1).astype(np.float32)
            self._seen.add(batches[~np.isnan(columns[-1])])
        return {}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        seen = self._seen
        if not seen.batches:
            return
        batches = self.run.step - self.run.epoch_first_step + 1
        if seen.batches != batches:
            reason = f"only {seen.batches} of the {batches} batches could be looked at"
            self.run.audit("data_epoch", {"not_testable": reason})
            return
        self.run.audit(
            "data_epoch",
            {
                "epoch": epoch,
                "batches": seen.batches,
                "rows": seen.rows,
                "order": seen.order,
                "content": seen.content,
                "distinct_batches": seen.distinct,
                "dataset_rows": self._dataset_rows(),
                "stopped": self._is_stopped(batches),
            },
        )

    def _is_stopped(self, batches: int) -> bool:
        """Whether somebody has ended training in the middle of the epoch."""
        declared = self.run.shared.get("declared_steps")
        is_short = declared is None or batches < declared
        return is_short and bool(getattr(self.run.model, "stop_training", False))

    def _dataset_rows(self) -> int | None:
        fit = self.run.fit
        if fit is None or fit.data_kind != "arrays":
            return None
        leaves = keras.tree.flatten(fit.get("x"))
        return int(leaves[0].shape[0]) if leaves and hasattr(leaves[0], "shape") else None


def _sums(backend: Backend, tensor: Any) -> list[Any]:
    """Two sums over the rows of a batch: the place of a row counts in one and not in the other."""
    array = backend.on_host(tensor)
    if array is not None:
        return [float(each[0]) for each in _sums_of_arrays(array[None])]
    rows = _weighed(backend, tensor)
    factors = ops.reshape(_factors(backend, rows), (-1,) + (1,) * (len(rows.shape) - 1))
    return backend.sums([rows, rows * factors])


def _joined(found: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The two sums of one input, or of two together."""
    if len(found) == 1:
        return found[0]
    return [one + 1.37 * other for one, other in zip(*found, strict=True)]


def _sums_of_arrays(arrays: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """`_sums` of each of some batches, (n, batch, ...), where operations of tensors would take
    longer. Each sum is rounded the same whatever comes with it: along the last axis, and not by a
    matrix product, which may round the same numbers otherwise at another place in memory.
    """
    size = math.prod(arrays.shape[2:])
    flat = arrays.reshape(*arrays.shape[:2], size)
    chosen = _chosen(size)
    if len(chosen) < size:
        flat = np.take(flat, chosen, axis=2)
    sums = _weighed_sums(flat)
    if not np.isfinite(sums).all():
        sums = _weighed_sums(np.nan_to_num(flat, nan=1.0, posinf=1.0, neginf=1.0))
    return sums


def _weighed_sums(flat: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Of (n, batch, elements); numbers beyond float32 add up to infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = (flat * _weights(flat.shape[2])).sum(axis=2)
        sums = [rows.sum(axis=1), (rows * _roots(rows.shape[1])).sum(axis=1)]
    return [each.astype(np.float64) for each in sums]


def _weighed(backend: Backend, tensor: Any) -> Any:
    """Some elements of each row with irregular weights; shape (batch,) or (batch, elements)."""
    if len(tensor.shape) == 1:
        return backend.finite(ops.cast(tensor, "float32"))
    inner = tensor.shape[1:]
    if None in inner:
        rows = ops.reshape(tensor, (ops.shape(tensor)[0], -1))
        return backend.finite(ops.cast(rows, "float32"))
    size = math.prod(inner)
    chosen = _chosen(size)
    flat = ops.reshape(tensor, (-1, size)) if len(inner) > 1 else tensor
    # First of all: the other elements need not be looked at.
    flat = ops.take(flat, backend.constant(chosen), axis=1) if len(chosen) < size else flat
    return backend.finite(ops.cast(flat, "float32")) * backend.constant(_weights(len(chosen)))


def _factors(backend: Backend, rows: Any) -> Any:
    """One for each place in a batch; shape (batch,)."""
    if rows.shape[0] is not None:
        return backend.constant(_roots(rows.shape[0]))
    return ops.sqrt(ops.cast(ops.arange(ops.shape(rows)[0]), "float32") + 1.0)


@functools.lru_cache(maxsize=64)
def _roots(places: int) -> np.ndarray[Any, Any]:
    return np.sqrt(np.arange(places, dtype=np.float32) + 1)


@functools.lru_cache(maxsize=64)
def _chosen(size: int) -> np.ndarray[Any, Any]:
    return np.unique(np.linspace(0, size - 1, min(ELEMENTS, size)).astype(np.int32))


@functools.lru_cache(maxsize=ELEMENTS)
def _weights(size: int) -> np.ndarray[Any, Any]:
    return np.asarray(np.cos(1.7 * np.arange(size)) + 1.5, np.float32)


class Fingerprints:
    """What is known of the batches of an epoch, in a few bytes however long the epoch is.

    Attributes:
        batches, rows: how many have been seen.
        distinct: different batches among the first MOST_DISTINCT.
    """

    def __init__(self) -> None:
        self.batches = self.rows = 0
        self._ordered = hashlib.blake2b(digest_size=12)
        self._content = 0  # sum of the batches' hashes: the same in any order
        self._distinct: set[int] = set()

    def add(self, batches: np.ndarray[Any, Any]) -> None:
        """Further batches: float32 of shape (n, 3), two fingerprints and the number of rows."""
        self.rows += int(batches[:, 2].sum(dtype=np.float64))
        self._ordered.update(np.ascontiguousarray(batches).tobytes())
        hashes = _hashes(batches)
        self._content = (self._content + int(hashes.sum(dtype=np.uint64))) % 2**64
        left = max(0, MOST_DISTINCT - self.batches)
        self._distinct.update(hashes[:left].tolist())
        self.batches += len(batches)

    @property
    def order(self) -> str:
        return self._ordered.hexdigest()

    @property
    def content(self) -> str:
        return f"{self._content:016x}"

    @property
    def distinct(self) -> int:
        return len(self._distinct)


def _hashes(batches: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64 bits for each row of (n, 3) float32.

    Source: the finalizer of splitmix64, Steele and others, "Fast Splittable Pseudorandom Number
    Generators", 2014.
    """
    mixed = np.zeros(len(batches), np.uint64)
    for column in np.ascontiguousarray(batches).view(np.uint32).T:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64) + np.uint64(1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
