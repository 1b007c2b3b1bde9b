"""Traces of the compiled step, and how many different batches it was given."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np
from keras import ops

from trainsanity.difference import dtype_of
from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.tape import TapeRows

MODULUS = 1 << 23  # of signatures: exact in float32


class Traces(Probe):
    """How often the train step was traced so far, and with how many signatures; nothing where it
    runs as Python code.
    """

    name = "traces"
    every_batch = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._seen: set[float] = set()
        self._traces = 0.0

    def trace_end(self, step: Step) -> Columns:
        if not step.training or not self.run.is_traced or self.run.backend.runs_at_once():
            return {}
        return {
            "_trace": ops.full((), float(self.run.shared["traces"])),
            "_signature": _signature(step.given),
        }

    def on_rows(self, rows: TapeRows) -> Columns:
        traces, signatures = rows.columns.get("_trace"), rows.columns.get("_signature")
        if traces is None or signatures is None:
            return {}
        counts = np.maximum.accumulate(np.maximum(traces, self._traces))
        self._traces = float(counts[-1])
        distinct = np.empty(len(rows))
        for i, signature in enumerate(signatures):
            self._seen.add(signature)
            distinct[i] = len(self._seen)
        return {"traces/count": counts, "traces/signatures": distinct}


def _signature(data: Any) -> Any:
    """A number for structure, dtypes and sizes of a batch, whichever sizes the trace happens to
    know.
    """
    leaves = [leaf for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")]
    kinds = [(len(leaf.shape), dtype_of(leaf)) for leaf in leaves]
    structure = repr(keras.tree.map_structure(lambda leaf: 0, data)) + repr(kinds)
    digest = hashlib.blake2b(structure.encode(), digest_size=4).digest()
    fixed = int.from_bytes(digest, "big") % MODULUS
    varying: Any = 0
    for place, leaf in enumerate(leaves):
        for axis, size in enumerate(ops.shape(leaf)):
            factor = 1 + (7919 * (place + 1) + 104_729 * (axis + 1)) % 1021
            if isinstance(size, int):
                fixed += (size % 2048) * factor
            elif size is not None:  # as of ragged rows
                varying = varying + ops.cast(size % 2048, "int32") * factor
    return ops.cast((fixed % MODULUS + varying) % MODULUS, "float32") if leaves else ops.zeros(())
