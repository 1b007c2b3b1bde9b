"""Real fits under a real callback, offline, and what the callback measured."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import keras

from trainsanity import SanityCallback
from trainsanity.spooled import SpooledRun

LONG = 30.0  # seconds that no run takes to end


def watched_fit(
    model: keras.Model, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any
) -> SpooledRun:
    """`model.fit(...)` with the callback; `options` are the callback's."""
    with tempfile.TemporaryDirectory() as folder:
        callback = offline_callback(folder, **(options or {}))
        callbacks = [*kwargs.pop("callbacks", []), callback]
        kwargs.setdefault("verbose", 0)
        model.fit(*args, callbacks=callbacks, **kwargs)
        return run_of(callback)


def offline_callback(folder: str | Path, **options: Any) -> SanityCallback:
    options = {"close_timeout": 300.0, **options}  # what is read here must be on disk
    return SanityCallback("offline", spool_dir=folder, keep_spool=True, verbose=False, **options)


def run_of(callback: SanityCallback) -> SpooledRun:
    """What the callback's latest run has spooled."""
    return SpooledRun.read(callback.settings.spool_dir / f"{callback.run_id}.spool")


def let_earlier_runs_end() -> None:
    """Those that an exception has left: they end soon after nobody refers to them any more, and
    listen until then to what the process prints.
    """
    latest = time.monotonic() + LONG
    for thread in [t for t in threading.enumerate() if t.name == "trainsanity-spool"]:
        while thread.is_alive() and time.monotonic() < latest:
            gc.collect()  # once is not enough where a finalizer lets go of the next cycle
            thread.join(0.5)
