"""What the user passed to `fit` or `evaluate`, seen from inside it.

A callback is told the number of epochs and steps, but not the class weights, the shuffle flag or
the data. These are what was *declared*, and rules compare them with what was measured. They are
local variables of the calling frame, which is only read; where it cannot be found, the facts are
unknown and the rules that need them say "not testable".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NO_SAMPLE = "no sample of the data could be taken; pass probe_data=(x, y)"


@dataclass(frozen=True)
class FitArguments:
    """Arguments of the watched call; None where unknown or not given.

    Attributes:
        call: "fit", "evaluate", or "" where neither was found.
        values: the arguments by name.
        declared_steps: batches of an epoch, as Keras knows them; None where it does not.
    """

    call: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    declared_steps: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    @property
    def data_kind(self) -> str | None:
        """ "arrays", "tf.data", "generator", "PyDataset", "DataLoader", or None where unknown."""
        x = self.get("x")
        if x is None:
            return None
        classes = [f"{base.__module__}.{base.__name__}" for base in type(x).__mro__]
        if any(name.startswith("tensorflow.") and "Dataset" in name for name in classes):
            return "tf.data"
        if any(name.endswith(".PyDataset") for name in classes):
            return "PyDataset"
        if any(name.startswith("torch.") and name.endswith(".DataLoader") for name in classes):
            return "DataLoader"
        if hasattr(x, "__next__"):
            return "generator"
        return "arrays"


def sample_of_arrays(arguments: FitArguments, rows: int) -> tuple[Any, Any, Any] | None:
    """The first rows of data given as arrays; None for every other kind of data."""
    import keras

    if arguments.data_kind != "arrays":
        return None
    parts = [arguments.get(name) for name in ("x", "y", "sample_weight")]
    leaves = [leaf for part in parts if part is not None for leaf in keras.tree.flatten(part)]
    if not all(hasattr(leaf, "shape") and len(leaf.shape) >= 1 for leaf in leaves):
        return None
    return _sample(parts, rows)


def sample_of_batch(batch: Any, rows: int) -> tuple[Any, Any, Any] | None:
    """The first rows of a batch `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as arrays of their
    own.
    """
    import keras

    if isinstance(batch, tuple) and len(batch) == 1 and isinstance(batch[0], (tuple, list)):
        batch = batch[0]  # torch's and JAX's trainers wrap the batch once more
    if isinstance(batch, list):
        batch = tuple(batch)  # a DataLoader's batch is a list
    return _sample(keras.utils.unpack_x_y_sample_weight(batch), rows)


def _sample(parts: Any, rows: int) -> tuple[Any, Any, Any] | None:
    """None where an array cannot be made of them, as of SciPy's sparse rows."""
    import keras

    x, y, sample_weight = (
        None if part is None else keras.tree.map_structure(lambda leaf: _rows(leaf, rows), part)
        for part in parts
    )
    leaves = keras.tree.flatten((x, y, sample_weight))
    if any(leaf is not None and leaf.ndim == 0 for leaf in leaves):
        return None
    return x, y, sample_weight


def _rows(leaf: Any, rows: int) -> np.ndarray[Any, Any] | None:
    """The first rows of an array or tensor, without moving the others off their device; None stays
    None.
    """
    import keras

    if leaf is None:
        return None
    first = leaf[:rows]
    return np.array(first if isinstance(first, np.ndarray) else keras.ops.convert_to_numpy(first))
