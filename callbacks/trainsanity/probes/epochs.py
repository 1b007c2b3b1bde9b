"""Each epoch and test pass: what was declared, what Keras counted, what the optimizer counted, what
was shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from keras import ops

from trainsanity import optimizers
from trainsanity.difference import numpy_of
from trainsanity.executions import steps_per_execution
from trainsanity.passes import is_witness
from trainsanity.probes.probe import Columns, Probe, Step
from trainsanity.recording import tensors_of
from trainsanity.tape import TapeRows

LOST = "a failure of trainsanity has cost this epoch a batch"


class Epochs(Probe):
    """Makes the audits `epoch` and `evaluate`, and signals of validation at the step after which it
    ran.
    """

    name = "epochs"
    every_batch = True
    in_all_processes = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._began = 0.0
        self._iterations: int | None = None
        self._rows = 0
        self._samples = 0.0
        self._skips: int | None = 0  # None: not every batch was looked at
        self._test_began = 0.0
        self._counted_by: Any = None  # the optimizer at the beginning of the epoch
        self._test_rows = 0
        self._test_samples = 0.0
        self._declared_test_steps: int | None = None
        self._seen_test = False

    # training

    def trace_logs(self, step: Step) -> Columns:
        # Also where a step of the user's asks for no loss.
        rows = tensors_of(step.given[0]) or tensors_of(step.given[1])
        if not rows or not len(rows[0].shape):
            return {}
        return {"batch/size": ops.shape(rows[0])[0]}

    see_step = trace_logs

    def on_epoch_begin(self, epoch: int) -> None:
        self.run.pace.take_next()
        self._began = time.monotonic()
        self._rows, self._samples, self._skips = 0, 0.0, 0
        self._counted_by = self.run.optimizer
        self._iterations = self._read_iterations()

    def _read_iterations(self) -> int | None:
        optimizer = self.run.optimizer
        if optimizer is None or optimizer is not self._counted_by:  # the model has another one now
            return None
        return optimizers.updates(optimizer, self.run.backend.read)

    def on_rows(self, rows: TapeRows) -> Columns:
        self._rows += len(rows) + rows.lost
        self._samples += _samples(rows)
        if self._scales_loss:
            self._count_skips(rows)
        return {}

    def _count_skips(self, rows: TapeRows) -> None:
        nonfinite = rows.columns.get("gradient/nonfinite")
        if "gradient/nonfinite" in rows.gaps:
            self._skips = None
        elif self._skips is not None and nonfinite is not None:
            self._skips += int((nonfinite > 0).sum())

    @property
    def _scales_loss(self) -> bool:
        """Whether a gradient that is not finite makes the optimizer skip the update."""
        optimizer = self.run.optimizer
        return optimizer is not None and optimizers.working(optimizer) is not optimizer

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        run, optimizer = self.run, self.run.optimizer
        latest = run.shared.get("latest", {})
        is_taped = bool(run.shared.get("taped"))
        own = {k: v for k, v in _numbers(logs).items() if not k.startswith("val_")}
        if run.replicas > 1 and is_taped:
            # What is shown within the epoch is a mean of the replicas' own values.
            run.points(run.step, {f"{k}/reported": value for k, value in own.items()})
        has_lost = run.shared.get("lost_at", -1) >= run.epoch_first_step - 1
        run.audit(
            "epoch",
            {
                "epoch": epoch,
                "not_testable": LOST if has_lost else None,
                "first_step": run.epoch_first_step,
                "last_step": run.step,
                "batches": self._rows if is_taped else run.step - run.epoch_first_step + 1,
                "iterations_before": self._iterations,
                "iterations_after": self._read_iterations(),
                "declared_steps": run.shared.get("declared_steps"),
                "reported": own,
                "recomputed": {
                    k: latest[f"{k}/recomputed"] for k in own if f"{k}/recomputed" in latest
                },
                "batch_size_mean": _mean(self._samples, self._rows),
                "seconds": time.monotonic() - self._began,
                "stopped": bool(getattr(run.model, "stop_training", False)),
                "steps_per_execution": steps_per_execution(run.model),
                "gradient_accumulation": optimizers.accumulation(optimizer),
                "loss_scale_skips": self._counted_skips(is_taped),
                "progress_total": run.shared.get("progress_total"),
            },
        )

    def _counted_skips(self, is_taped: bool) -> int | None:
        if not self._scales_loss:
            return 0
        return self._skips if is_taped else None

    # testing

    def on_test_begin(self) -> None:
        self.run.test_pace.take_next()
        self._test_began = time.monotonic()
        self._test_rows, self._test_samples = 0, 0.0
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

    def on_test_rows(self, rows: TapeRows) -> Columns:
        self._test_rows += len(rows) + rows.lost
        self._test_samples += _samples(rows)
        return {}

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        run = self.run
        inside = run.kind == "fit"
        run.audit(
            "evaluate",
            {
                "inside_fit": inside,
                "batches": self._test_rows or run.shared.get("test_batches"),
                "batch_size_mean": _mean(self._test_samples, self._test_rows),
                "declared_steps": self._declared_test_steps,
                # Validation has no progress bar of its own.
                "progress_total": None if inside else run.shared.get("progress_total"),
                "steps_per_execution": steps_per_execution(run.model),
                "seconds": time.monotonic() - self._test_began,
            },
        )
        if inside:
            self._validation(logs)

    def _validation(self, logs: Mapping[str, Any]) -> None:
        latest = self.run.shared.get("test_latest", {})
        columns = {f"val_{k}/reported": value for k, value in _numbers(logs).items()}
        columns |= {f"val_{name}": v for name, v in latest.items() if is_witness(name, logs)}
        self.run.points(self.run.step, columns)


def _samples(rows: TapeRows) -> float:
    sizes = rows.columns.get("batch/size")
    return 0.0 if sizes is None else float(sizes.sum())


def _mean(samples: float, batches: int) -> float | None:
    return samples / batches if batches else None


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Those of one element too: F1Score gives one for each column."""
    return {k: float(numpy_of(v).item()) for k, v in logs.items() if _is_number(v)}


def _is_number(value: Any) -> bool:
    return not isinstance(value, (dict, list, tuple, str)) and getattr(value, "size", 1) == 1
