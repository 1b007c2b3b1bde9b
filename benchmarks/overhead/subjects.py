"""The callbacks that are compared, each logging every batch, each as its documentation says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import keras

Subject = Callable[[], AbstractContextManager[list[Any]]]


@contextmanager
def none() -> Iterator[list[Any]]:
    yield []


@contextmanager
def trainsanity() -> Iterator[list[Any]]:
    """All default probes; the server's address comes from TRAINSANITY_URL, and AUDIT_BUDGET may
    say what audits may take.
    """
    from trainsanity import SanityCallback

    budget = os.environ.get("AUDIT_BUDGET")
    with tempfile.TemporaryDirectory() as folder:
        yield [
            SanityCallback(
                spool_dir=folder,
                on_alert="silent",
                verbose=False,
                close_timeout=1.0,
                project="bench",
                **({} if budget is None else {"audit_budget": float(budget)}),
            )
        ]


@contextmanager
def tensorboard() -> Iterator[list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        yield [keras.callbacks.TensorBoard(folder, update_freq=1)]


@contextmanager
def mlflow() -> Iterator[list[Any]]:
    import mlflow as library
    from mlflow.keras import MlflowCallback

    with tempfile.TemporaryDirectory() as folder:
        library.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        library.create_experiment("bench", artifact_location=str(Path(folder) / "artifacts"))
        library.set_experiment("bench")
        with library.start_run():
            yield [MlflowCallback(log_every_epoch=False, log_every_n_steps=1)]


@contextmanager
def wandb() -> Iterator[list[Any]]:
    import wandb as library
    from wandb.integration.keras import WandbMetricsLogger

    with tempfile.TemporaryDirectory() as folder:
        run = library.init(
            project="bench", mode="offline", dir=folder, settings=library.Settings(silent=True)
        )
        try:
            yield [WandbMetricsLogger(log_freq="batch")]
        finally:
            run.finish()


@contextmanager
def aim() -> Iterator[list[Any]]:
    """Aim's own callback logs once an epoch; this one tracks every batch, as Aim's guide shows."""
    from aim import Run

    with tempfile.TemporaryDirectory() as folder:
        run = Run(repo=folder, log_system_params=False, capture_terminal_logs=False)
        try:
            yield [_TrackBatches(run)]
        finally:
            run.close()


class _TrackBatches(keras.callbacks.Callback):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self._run = run

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            self._run.track(value, name=name, step=batch)


SUBJECTS: dict[str, Subject] = {
    "trainsanity": trainsanity,
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
    "aim": aim,
}
