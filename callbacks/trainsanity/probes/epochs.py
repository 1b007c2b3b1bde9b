"""Each epoch: what was declared, what Keras counted, what the optimizer counted, what was shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from trainsanity.probes.probe import Columns, Probe
from trainsanity.tape import TapeRows


class Epochs(Probe):
    """Makes the audit `epoch`, and signals of validation at the step after which it ran."""

    name = "epochs"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._began = 0.0
        self._iterations = 0
        self._rows = 0
        self._samples = 0.0

    def on_epoch_begin(self, epoch: int) -> None:
        self._began = time.monotonic()
        self._rows, self._samples = 0, 0.0
        self._iterations = self._read_iterations()

    def _read_iterations(self) -> int:
        optimizer = self.run.optimizer
        return 0 if optimizer is None else int(self.run.backend.read(optimizer._iterations))

    def on_rows(self, rows: TapeRows) -> Columns:
        self._rows += len(rows) + rows.lost
        sizes = rows.columns.get("batch/size")
        if sizes is not None:
            self._samples += float(sizes.sum())
        return {}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        run = self.run
        latest = run.shared.get("latest", {})
        optimizer = run.optimizer
        own = {k: v for k, v in logs.items() if not k.startswith("val_")}
        run.audit(
            "epoch",
            {
                "epoch": epoch,
                "first_step": run.epoch_first_step,
                "last_step": run.step,
                "batches": self._rows
                if run.shared.get("taped")
                else run.step - run.epoch_first_step + 1,
                "iterations_before": self._iterations,
                "iterations_after": self._read_iterations(),
                "declared_steps": run.shared.get("declared_steps"),
                "reported": {k: float(v) for k, v in own.items()},
                "recomputed": {
                    k: latest[f"{k}/recomputed"] for k in own if f"{k}/recomputed" in latest
                },
                "batch_size_mean": self._samples / self._rows if self._rows else None,
                "seconds": time.monotonic() - self._began,
                "stopped": bool(run.model.stop_training),
                "steps_per_execution": int(run.model.steps_per_execution),
                "gradient_accumulation": getattr(optimizer, "gradient_accumulation_steps", None),
                "loss_scale_skips": None,
            },
        )

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        if self.run.kind != "fit":
            return
        latest = self.run.shared.get("test_latest", {})
        columns = {f"val_{key}/reported": float(value) for key, value in logs.items()}
        for name, value in latest.items():
            quantity, _, witness = name.rpartition("/")
            if witness in ("recomputed", "unmasked", "all", "weighted") and quantity in logs:
                columns[f"val_{name}"] = value
        self.run.point(self.run.step, **{k.replace("/", "__"): v for k, v in columns.items()})
