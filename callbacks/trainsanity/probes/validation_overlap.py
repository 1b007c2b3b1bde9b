"""Rows of the validation data that occur among the training rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from trainsanity.probes.probe import Probe

MOST_BYTES = 256_000_000  # of data that are hashed; more would keep training waiting


class ValidationOverlap(Probe):
    """Makes the audit `validation_overlap` after the first validation, of data given as arrays."""

    name = "validation_overlap"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._said = False

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        if self._said or self.run.kind != "fit":
            return
        self._said = True
        self.run.audit(self.name, self._facts())

    def _facts(self) -> dict[str, Any]:
        fit = self.run.fit
        given = fit.get("validation_data") if fit is not None else None
        if fit is None or fit.data_kind != "arrays" or not isinstance(given, (tuple, list)):
            return {"not_testable": "training and validation data are not both given as arrays"}
        validation_x, validation_y, _ = keras.utils.unpack_x_y_sample_weight(tuple(given))
        parts = [(fit.get("x"), fit.get("y")), (validation_x, validation_y)]
        leaves = [keras.tree.flatten(part) for part in parts]
        if not all(isinstance(leaf, np.ndarray) for part in leaves for leaf in part):
            return {"not_testable": "training and validation data are not both NumPy arrays"}
        if sum(leaf.nbytes for part in leaves for leaf in part) > MOST_BYTES:
            return {"not_testable": f"the data is larger than {MOST_BYTES:,} bytes"}
        train, validation = (_hashes(part) for part in leaves)
        counts = Counter(train)
        return {
            "validation_rows": len(validation),
            "shared": sum(row in counts for row in validation),
            "train_rows": len(train),
            "train_duplicates": sum(n for n in counts.values() if n > 1),
            "hashed": "inputs and labels" if parts[0][1] is not None else "inputs",
        }


def _hashes(leaves: list[np.ndarray[Any, Any]]) -> list[bytes]:
    arrays = [np.ascontiguousarray(leaf).reshape(leaf.shape[0], -1) for leaf in leaves]
    return [
        hashlib.blake2b(b"".join(a[i].tobytes() for a in arrays), digest_size=12).digest()
        for i in range(arrays[0].shape[0])
    ]
