"""The same weights and input by two ways: eager and compiled, a sample alone and among others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from trainsanity.difference import array_of, coarsest_dtype, difference
from trainsanity.forward import (
    fixed_batch,
    quiet_forward,
    redrawn_forward,
    refused,
    untouched,
)
from trainsanity.probes.probe import Probe
from trainsanity.recording import first_rows, rows_of, tensors_of

TAKES_SECONDS = "torch.compile would take seconds for a function to compare with"


class Paths(Probe):
    """Makes the audit `paths` from the sample."""

    name = "paths"
    cost = 0.5
    runs_compiled = True

    def on_sample(self) -> None:
        model, x = self.run.model, self.run.sample[0]
        eager = tensors_of(quiet_forward(model, x))
        again = tensors_of(redrawn_forward(model, x))
        noise = [difference(a, b)["largest"] for a, b in zip(eager, again, strict=True)]
        sensitivity = self._sensitivity(eager, x)
        comparisons = []
        first = first_rows(x, 1) if rows_of(x) > 1 and fixed_batch(model) is None else None
        compiled, single = self._predicted(model, x, first)
        together = compiled
        if single is None and first is not None:
            together, single = eager, tensors_of(quiet_forward(model, first))
        ways: tuple[tuple[str, list[str], Callable[[Any], Any], list[Any], list[Any]], ...] = (
            ("execution", ["eager call", "predict"], lambda t: t, eager, compiled),
            ("batch", ["in a batch", "alone"], lambda t: t[:1], together, single or []),
        )
        for kind, names, part, outputs, others in ways:
            if not others:
                continue
            for i, (a, b) in enumerate(zip(outputs, others, strict=True)):
                if kind == "batch" and not _has_rows(a, b, rows_of(x)):
                    continue
                compared = self._compare(i, kind, names, part(a), b, noise[i], sensitivity[i])
                comparisons.append(compared)
        self.run.audit("paths", {"comparisons": comparisons})

    def _predicted(self, model: Any, x: Any, first: Any) -> tuple[list[Any], list[Any] | None]:
        """Of all rows; and of the first one, where one program is compiled faster than each of its
        operations, else None. Nothing where compiling takes too long.
        """
        backend = self.run.backend
        if backend.follows_code(model):
            self.run.not_testable["paths/execution"] = TAKES_SECONDS
            return [], None
        predicts = refused("predict on the captured rows raises")
        with _own_predict_function(model), predicts:
            with untouched(model):
                compiled = tensors_of(model.predict_on_batch(x))
            if first is None or not (backend.COMPILES_OPERATIONS and backend.is_traced_step(model)):
                return compiled, None
            with untouched(model):
                return compiled, tensors_of(model.predict_on_batch(first))

    def _sensitivity(self, outputs: list[Any], x: Any) -> list[float | None]:
        """How far the outputs move when every floating-point input moves by one rounding."""
        leaves = keras.tree.flatten(x)
        if not any(np.asarray(leaf).dtype.kind == "f" for leaf in leaves):
            return [None] * len(outputs)
        moved: Any = keras.tree.map_structure(_next, x)
        others = tensors_of(quiet_forward(self.run.model, moved))
        return [difference(a, b)["largest"] for a, b in zip(outputs, others, strict=True)]

    def _compare(
        self, index: int, kind: str, ways: list[str], a: Any, b: Any, noise: float, sensitivity: Any
    ) -> dict[str, Any]:
        names = getattr(self.run.model, "output_names", None) or []
        shapes = tuple(array_of(a).shape), tuple(array_of(b).shape)
        if shapes[0] != shapes[1]:
            found = {"largest": float("inf"), "scale": 0.0, "elements": 0, "dtype": "float32"}
        else:
            coarsest = coarsest_dtype(self.run.model)
            found = difference(a, b, noise=noise, sensitivity=sensitivity, computed_in=coarsest)
        return {
            "subject": names[index] if index < len(names) else "output",
            "kind": kind,
            "ways": ways,
            "difference": found,
            "declared_follows_batch": False,
            "site": None,
        }


def _has_rows(output: Any, alone: Any, rows: int) -> bool:
    """Whether an output has a row for each sample: a mean over a batch has none, nor has a table
    that is the same for every batch.
    """
    shape = tuple(output.shape)
    return shape[:1] == (rows,) and shape != tuple(alone.shape)


def _next(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return (
        np.nextafter(array, np.float64("inf").astype(array.dtype))
        if array.dtype.kind == "f"
        else array
    )


@contextmanager
def _own_predict_function(model: Any) -> Iterator[None]:
    """Within, `predict_on_batch` compiles for itself; the model's own function stays as it was."""
    before = model.predict_function
    model.predict_function = None
    try:
        yield
    finally:
        model.predict_function = before
