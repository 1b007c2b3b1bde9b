"""How often each class occurs among the labels, beside the accuracy that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from trainsanity.difference import numpy_of
from trainsanity.probes.metrics import compiled_metrics
from trainsanity.probes.probe import Probe

MOST_CLASSES = 1000  # more are no classes but ids of words
MOST_ROWS = 1_000_000  # that are counted


class LabelCounts(Probe):
    """Makes the audit `label_counts` of labels that were given as arrays."""

    name = "label_counts"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._outputs: list[dict[str, Any]] | None = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if self._outputs is None:
            self._outputs = self._count()
            if not self._outputs:
                reason = "the labels are no arrays of class numbers or one-hot rows"
                self.run.audit(self.name, {"not_testable": reason})
        if self._outputs:
            rows = [row | {"shown": _shown(row, logs)} for row in self._outputs]
            self.run.audit(self.name, {"epoch": epoch, "outputs": rows})

    def _count(self) -> list[dict[str, Any]]:
        fit = self.run.fit
        if fit is None or fit.data_kind != "arrays" or fit.get("y") is None:
            return []
        labels = keras.tree.flatten(fit.get("y"))
        names = getattr(self.run.model, "output_names", None) or []
        if len(labels) > 1 and len(names) != len(labels):
            return []
        weighted = fit.get("class_weight") is not None or fit.get("sample_weight") is not None
        rows = []
        for i, label in enumerate(labels):
            counts = _counts(label)
            if counts:
                name = names[i] if len(labels) > 1 else ""
                rows.append(
                    {
                        "name": name,
                        "counts": counts,
                        "weighted": weighted,
                        "accuracy": self._accuracy_key(name),
                    }
                )
        return rows

    def _accuracy_key(self, name: str) -> str | None:
        """The key of an accuracy that Keras shows for this output."""
        for entry in compiled_metrics(self.run.model):
            kind = type(entry.metric).__name__ + str(getattr(entry.metric, "_fn", ""))
            kind = kind.lower().replace("_", "")
            is_accuracy = "accuracy" in kind and "topk" not in kind
            if is_accuracy and entry.key.startswith(name):
                return str(entry.key)
        return None


def _counts(label: Any) -> dict[str, int]:
    if not hasattr(label, "shape") or not len(label.shape) or label.shape[0] > MOST_ROWS:
        return {}
    values = numpy_of(label)
    if values.ndim == 2 and values.shape[1] > 1:
        if not _is_one_hot(values):
            return {}
        values = values.argmax(axis=1)
    elif values.ndim > 2 or not np.array_equal(values, np.round(values)):
        return {}
    classes, counts = np.unique(values.reshape(-1), return_counts=True)
    if len(classes) > MOST_CLASSES:
        return {}
    return {str(int(c)): int(n) for c, n in zip(classes, counts, strict=True)}


def _is_one_hot(values: np.ndarray[Any, Any]) -> bool:
    return bool(((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all())


def _shown(row: Mapping[str, Any], logs: Mapping[str, Any]) -> float | None:
    value = logs.get(row["accuracy"]) if row["accuracy"] else None
    return None if value is None else float(value)
