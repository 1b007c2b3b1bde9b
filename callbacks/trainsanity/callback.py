"""`SanityCallback`: the one thing that users add to `fit`."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import keras

from trainsanity import call_sites, identity
from trainsanity.session import Session
from trainsanity.settings import Expect, OnAlert, Settings
from trainsanity.watched_call import WatchedCall

call_sites.remember_nodes()


class SanityCallback(keras.callbacks.Callback):  # type: ignore[misc] # Keras is Any to mypy
    """Checks during training whether what Keras shows is true.

    ```python
    model.fit(x, y, callbacks=[SanityCallback()])
    ```

    Training gives the same weights, bit for bit, with and without it, and never fails, waits or
    hangs because of it. The same object may be used for several calls of `fit` and `evaluate`; each
    is a run of its own.

    Args:
        url: Address of the server. Defaults to `$TRAINSANITY_URL`, then `http://127.0.0.1:8321`.
            `"offline"` only writes to `spool_dir`; send it later with `trainsanity sync`.
        project: Name under which runs are grouped.
        run_name: Name of the run; made of the model's name and the time where it is left out.
        run_id: UUID of the run; a new one where it is left out. For the first run only.
        tags: Words to find the run by.
        config: Plain data to keep with the run, such as hyperparameters.
        api_key: Key of the server. Defaults to `$TRAINSANITY_API_KEY`.
        probe_data: A fixed small batch `(x, y)` or `(x, y, sample_weight)` for audits. Without
            it the first rows of the training data are used. It never leaves the process.
        expect: What you intend, e.g. `Expect(shuffle=True, causal=True)`.
        on_alert: `"warn"` prints each new alert once; `"stop"` also ends training at the next batch
            after a critical one; `"silent"` does nothing; a function gets the alert as a dict.
        update_freq: `"batch"`, or a number of batches, or `"epoch"`: how often what was measured is
            read from the device. Every batch is measured in any case.
        spool_dir: Folder in which what was measured waits until the server has it.
        keep_spool: Keep a run's spool file after the server has everything.
        close_timeout: Seconds that the end of training may wait for the server. The rest
            stays in `spool_dir`.
        audit_budget: Share of the training time so far that audits may take, 0 to 1.
        verbose: Print one line when a run begins and one when it ends.

    Attributes:
        run_id: Id of the current or last run; None before the first.
        run_url: Address of its page; empty while offline.
        alerts: What is known so far, a list of dicts as the HTTP API gives them.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        project: str = "default",
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        probe_data: Any = None,
        expect: Expect | None = None,
        on_alert: OnAlert = "warn",
        update_freq: str | int = "batch",
        spool_dir: str | os.PathLike[str] | None = None,
        keep_spool: bool = False,
        close_timeout: float = 10.0,
        audit_budget: float = 0.05,
        verbose: bool | int = True,
    ) -> None:
        super().__init__()
        self.settings = Settings.resolve(
            url,
            project=project,
            run_name=run_name,
            run_id=run_id,
            tags=tags,
            config=config,
            api_key=api_key,
            expect=expect,
            on_alert=on_alert,
            update_freq=update_freq,
            spool_dir=spool_dir,
            keep_spool=keep_spool,
            close_timeout=close_timeout,
            audit_budget=audit_budget,
            verbose=verbose,
        )
        self.probe_data = _checked_probe_data(probe_data)
        self._session: Session | None = None  # of the newest run
        # Several where it was given to a call inside the watched one, or in two threads.
        self._open_sessions: list[Session] = []
        self._runs_begun = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> SanityCallback:
        """A copy for another `fit`, as tuners make it: same choices, no run of its own yet."""
        other = copy.copy(self)
        other._session, other._open_sessions = None, []
        return other

    def __getstate__(self) -> dict[str, Any]:
        # A run belongs to its process: threads and files do not travel.
        return {**self.__dict__, "_session": None, "_open_sessions": [], "_model": None}

    # what users may ask

    @property
    def run_id(self) -> str | None:
        return self._session.run_id if self._session else None

    @property
    def run_url(self) -> str:
        return self._session.run_url if self._session else ""

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return self._session.alerts if self._session else []

    # Keras calls these

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if self._is_busy(model):
            # A call inside the watched one was given this callback too; it goes on with the watched
            # one.
            return
        call = WatchedCall(model, sys._getframe(1))
        session = self._open(model, call)
        if call:
            session.attach()

    def _is_busy(self, model: Any) -> bool:
        """Whether a call of this model is watched already; calls that were left end here."""
        for session in [*self._open_sessions]:
            if not session.is_watching():
                self._close(session)
                session.abandon()
        return any(s.model is model and not s.ended for s in self._open_sessions)

    def _open(self, model: Any, call: WatchedCall) -> Session:
        run_id = self.settings.run_id if self._runs_begun == 0 else None
        self._runs_begun += 1
        session = Session(
            model,
            self.settings,
            run_id or identity.new_run_id(),
            call,
            self.probe_data,
            params=lambda: self.params or {},
        )
        self._session = session
        self._open_sessions.append(session)
        return session

    def _close(self, session: Session) -> None:
        with suppress(ValueError):  # another thread has
            self._open_sessions.remove(session)

    def _watched(self) -> Session | None:
        """The session on behalf of whose call a hook is called."""
        open_sessions = reversed(self._open_sessions)
        return next((session for session in open_sessions if session.is_own_hook()), None)

    def _beginning(self) -> Session | None:
        """The session of the call that begins: a new one where a list of callbacks is used again,
        or was made before the call.
        """
        session = self._newest()
        if session is None or session.is_attached:
            return self._watched()
        self._close(session)
        call = WatchedCall(session.model, sys._getframe(2))
        session = self._open(session.model, call)
        session.attach()
        return session

    def _newest(self) -> Session | None:
        """The newest session that may be of this thread's call."""
        newest = self._session
        if newest is None or not newest.is_of_other_thread:
            return newest
        own = (s for s in reversed(self._open_sessions) if not s.is_of_other_thread)
        return next(own, newest)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if session := self._beginning():
            session.begin("fit")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if session := self._watched():
            session.end("finished")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if session := self._watched():
            session.epoch_begin(epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if session := self._watched():
            session.epoch_end(epoch, logs or {})

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if session := self._beginning():
            session.test_begin()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if session := self._watched():
            session.test_end(logs or {})


def _checked_probe_data(data: Any) -> Any:
    if data is None or (isinstance(data, (tuple, list)) and len(data) in (2, 3)):
        return data
    raise ValueError(
        "probe_data must be (x, y) or (x, y, sample_weight), a small batch of arrays. "
        f"Received: {type(data).__name__}"
        + (f" of length {len(data)}" if hasattr(data, "__len__") else "")
    )
