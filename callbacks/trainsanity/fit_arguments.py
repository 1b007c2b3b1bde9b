"""What the user passed to `fit` or `evaluate`, seen from inside it.

A callback is told the number of epochs and steps, but not the class weights, the shuffle flag or
the data.
These are what was *declared*, and rules compare them with what was measured. They are local
variables of the calling frame, which is only read; where it cannot be found, the facts are unknown
and the rules that need them
say "not testable".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_CALLS = ("fit", "evaluate")


@dataclass(frozen=True)
class FitArguments:
    """Arguments of the watched call; None where unknown or not given."""

    call: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    @property
    def data_kind(self) -> str | None:
        """ "arrays", "tf.data", "generator", "PyDataset", "DataLoader", or None where unknown."""
        x = self.get("x")
        if x is None:
            return None
        name = type(x).__name__
        module = type(x).__module__
        if "Dataset" in name and module.startswith("tensorflow"):
            return "tf.data"
        if any(base.__name__ == "PyDataset" for base in type(x).__mro__):
            return "PyDataset"
        if name == "DataLoader":
            return "DataLoader"
        if hasattr(x, "__next__"):
            return "generator"
        return "arrays"


def find(model: Any) -> FitArguments:
    """The arguments of the innermost `fit` or `evaluate` of this model that is running in this
    thread.
    """
    frame = sys._getframe(1)
    while frame is not None:
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        if (
            frame.f_code.co_name in _CALLS
            and frame.f_locals.get("self") is model
            and "callbacks" in names
        ):
            local = frame.f_locals
            wanted = {*names, "epoch_iterator"} - {"self", "callbacks"}
            return FitArguments(
                frame.f_code.co_name, {name: local[name] for name in wanted if name in local}
            )
        frame = frame.f_back  # type: ignore[assignment]
    return FitArguments()


def sample_of_arrays(arguments: FitArguments, rows: int) -> tuple[Any, Any, Any] | None:
    """The first rows of data given as arrays; None for every other kind of data."""
    import keras

    if arguments.data_kind != "arrays":
        return None
    parts = [arguments.get(name) for name in ("x", "y", "sample_weight")]
    leaves = [leaf for part in parts if part is not None for leaf in keras.tree.flatten(part)]
    if not all(hasattr(leaf, "shape") and len(leaf.shape) >= 1 for leaf in leaves):
        return None
    return tuple(  # type: ignore[return-value]
        None
        if part is None
        else keras.tree.map_structure(lambda leaf: np.array(np.asarray(leaf[:rows])), part)
        for part in parts
    )


def sample_of_batch(batch: Any, rows: int) -> tuple[Any, Any, Any] | None:
    """The first rows of a batch `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as arrays of their
    own.
    """
    import keras

    if isinstance(batch, tuple) and len(batch) == 1 and isinstance(batch[0], (tuple, list)):
        batch = batch[0]  # torch's and JAX's trainers wrap the batch once more
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    return tuple(  # type: ignore[return-value]
        None
        if part is None
        else keras.tree.map_structure(
            lambda leaf: np.array(keras.ops.convert_to_numpy(leaf)[:rows]), part
        )
        for part in (x, y, weight)
    )
