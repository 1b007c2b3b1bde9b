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
        self._skips: int | None = None  # None where the update cannot be seen
        self._test_began = 0.0
        self._test_rows = 0
        self._declared_test_steps: Any = None
        self._seen_test = False

    def on_epoch_begin(self, epoch: int) -> None:
        self._began = time.monotonic()
        self._rows, self._samples, self._skips = 0, 0.0, None
        self._iterations = self._read_iterations()

    def _read_iterations(self) -> int:
        optimizer = self.run.optimizer
        if optimizer is None:
            return 0
        # Loss scaling wraps the optimizer that counts.
        counted = getattr(optimizer, "inner_optimizer", optimizer)
        return int(self.run.backend.read(counted._iterations))

    def on_rows(self, rows: TapeRows) -> Columns:
        self._rows += len(rows) + rows.lost
        sizes = rows.columns.get("batch/size")
        if sizes is not None:
            self._samples += float(sizes.sum())
        skipped = rows.columns.get("_loss_scale:skipped")
        if skipped is not None:
            self._skips = (self._skips or 0) + int(skipped.sum())
        return {}

    def on_test_rows(self, rows: TapeRows) -> Columns:
        self._test_rows += len(rows) + rows.lost
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
                "gradient_accumulation": getattr(
                    getattr(optimizer, "inner_optimizer", optimizer),
                    "gradient_accumulation_steps",
                    None,
                ),
                "loss_scale_skips": self._loss_scale_skips(),
                "progress_total": run.shared.get("progress_total"),
            },
        )

    def _loss_scale_skips(self) -> int | None:
        if not hasattr(self.run.optimizer, "inner_optimizer"):
            return 0
        return self._skips

    def on_test_begin(self) -> None:
        self._test_began, self._test_rows = time.monotonic(), 0
        if not self._seen_test:
            self._seen_test = True
            self._declared_test_steps = self._find_declared_test_steps()

    def _find_declared_test_steps(self) -> int | None:
        """As Keras knows it before the first pass; afterwards it remembers what it has counted."""
        if self.run.kind == "evaluate":
            declared = self.run.shared.get("declared_steps")
        else:
            iterator = getattr(self.run.model, "_eval_epoch_iterator", None)
            declared = getattr(iterator, "num_batches", None)
        return None if declared is None else int(declared)

    def _audit_test_pass(self) -> None:
        inside_fit = self.run.kind == "fit"
        self.run.audit(
            "evaluate",
            {
                "inside_fit": inside_fit,
                "batches": self._test_rows,
                "declared_steps": self._declared_test_steps,
                "progress_total": None if inside_fit else self.run.shared.get("progress_total"),
                "steps_per_execution": int(self.run.model.steps_per_execution or 1),
                "seconds": time.monotonic() - self._test_began,
            },
        )

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        if self._test_rows:
            self._audit_test_pass()
        if self.run.kind != "fit":
            return
        latest = self.run.shared.get("test_latest", {})
        columns = {f"val_{key}/reported": float(value) for key, value in logs.items()}
        for name, value in latest.items():
            quantity, _, witness = name.rpartition("/")
            if witness in ("recomputed", "unmasked", "all", "weighted") and quantity in logs:
                columns[f"val_{name}"] = value
        self.run.point(self.run.step, **{k.replace("/", "__"): v for k, v in columns.items()})
