"""Calls inside the watched one: of other models, in other threads, of handlers of signals."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import offline_callback, run_of

from trainsanity import SanityCallback
from trainsanity.frames import outward
from trainsanity.spooled import SpooledRun

X = np.random.default_rng(1).normal(size=(24, 5)).astype("float32")


def net(*more: layers.Layer) -> keras.Model:
    model = keras.Sequential([keras.Input((5,)), *more, layers.Dense(4, "tanh"), layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def fit(model: keras.Model, *callbacks: Any, epochs: int = 2) -> keras.Model:
    model.fit(X, X[:, :1], batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks])
    return model


class AtEpochEnd(keras.callbacks.Callback):  # type: ignore[misc] # Keras is Any to mypy
    """Does something with the model once, after the first epoch."""

    def __init__(self, does: Callable[[keras.Model], Any]) -> None:
        super().__init__()
        self._does = does

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self._does(self.model)


def in_a_thread(does: Callable[[keras.Model], Any]) -> Callable[[keras.Model], None]:
    def run(model: keras.Model) -> None:
        thread = threading.Thread(target=does, args=[model])
        thread.start()
        thread.join()

    return run


def is_plain(model: keras.Model) -> bool:
    names = ("make_train_function", "make_test_function", "train_step", "evaluate", "compute_loss")
    return not any(name in vars(model) for name in names)


def as_trained(*, watched: bool, inside: Callable[[keras.Model], Any], folder: Any) -> Any:
    keras.utils.set_random_seed(3)
    ours = [offline_callback(folder)] if watched else []
    model = fit(net(), *ours, AtEpochEnd(inside))
    return [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize(
    "inside",
    [
        in_a_thread(lambda model: model.evaluate(X, X[:, :1], verbose=0)),
        in_a_thread(lambda model: model.test_on_batch(X, X[:, :1])),
        in_a_thread(lambda model: model.train_on_batch(X, X[:, :1])),
        in_a_thread(lambda model: fit(net())),
    ],
)
def test_a_callback_may_use_the_model_in_another_thread(
    inside: Callable[[keras.Model], Any], tmp_path: Any
) -> None:
    pair = [as_trained(watched=w, inside=inside, folder=tmp_path) for w in (False, True)]
    assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("goes", [lambda does: does, in_a_thread])
def test_one_callback_watches_a_fit_of_another_model_inside_the_first(
    goes: Any, tmp_path: Any
) -> None:
    callback = offline_callback(tmp_path)
    inner: list[Any] = []

    def train(_: keras.Model) -> None:
        inner.append(fit(net(), callback, epochs=3))
        inner.append(run_of(callback))

    outer = fit(net(), callback, AtEpochEnd(goes(train)))

    assert is_plain(outer)
    assert is_plain(inner[0])
    runs = sorted(map(SpooledRun.read, tmp_path.glob("*.spool")), key=lambda r: len(r.packets))
    ends = sorted((run.packets[-1].step, str(run.packets[-1].state)) for run in runs)
    assert ends == [(6, "finished"), (9, "finished")]
    assert [len(run.audits("probe_failed")) for run in runs] == [0, 0]
    assert inner[1].packets[-1].step == 9


def fit_at_once(calls: Sequence[tuple[Any, ...]]) -> None:
    """Each in a thread of its own: a model and its callbacks."""
    threads = [threading.Thread(target=fit, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def assert_both_watched(models: Sequence[keras.Model], folder: Path) -> None:
    assert all(map(is_plain, models))
    runs = [SpooledRun.read(path) for path in folder.glob("*.spool")]
    assert [(r.packets[-1].step, str(r.packets[-1].state)) for r in runs] == [(6, "finished")] * 2


class FirstOutFirst(keras.callbacks.Callback):  # type: ignore[misc] # Keras is Any to mypy
    """In two threads at a time: the one that came first to the end of an epoch leaves it first."""

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(2, timeout=120)
        self._first: list[int] = []
        self._is_out = threading.Event()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._first.append(threading.get_ident())
        if epoch == 0:
            self.together.wait()
            if self._first[0] != threading.get_ident():
                assert self._is_out.wait(120)
        else:
            self._is_out.set()


@pytest.mark.parametrize("are_shared", [False, True])
def test_one_callback_may_be_used_in_two_threads_at_a_time(
    tmp_path: Any, *, are_shared: bool
) -> None:
    """Ours, and one of the user's beside it."""
    callback = offline_callback(tmp_path)
    models = [net(), net()]
    shared = FirstOutFirst()
    together = shared.together
    apart = [AtEpochEnd(lambda _: together.wait()) for _ in models]
    waits = [shared, shared] if are_shared else apart
    fit_at_once([(model, callback, wait) for model, wait in zip(models, waits, strict=True)])
    assert not together.broken
    assert_both_watched(models, tmp_path)


def test_one_callback_may_begin_in_two_threads_at_once(tmp_path: Any) -> None:
    together = threading.Barrier(2, timeout=120)

    class AtOnce(SanityCallback):
        """Each thread waits until the other one has come as far."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "_session" and value is not None:
                together.wait()

    callback = AtOnce("offline", spool_dir=tmp_path, keep_spool=True, verbose=False)
    models = [net(), net()]
    fit_at_once([(model, callback) for model in models])
    assert not together.broken
    assert_both_watched(models, tmp_path)


class TimeLimitError(RuntimeError):
    pass


class Slow(layers.Layer):  # type: ignore[misc] # Keras is Any to mypy
    """Its time is up when an audit calls it for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()  # plain attributes are put back after audits

    def call(self, inputs: Any) -> Any:
        is_audit = any(f.f_code.co_name == "_hear_out" for f in outward(sys._getframe()))
        if is_audit and not self.over.is_set():
            self.over.set()
            signal.raise_signal(signal.SIGTERM)
        return inputs


@contextmanager
def limited() -> Iterator[None]:
    def handler(*_: Any) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_handler_of_a_signal_raises_in_an_audit_ends_the_fit(tmp_path: Any) -> None:
    slow, callback = Slow(), offline_callback(tmp_path, audit_budget=1.0)
    model = net(slow)
    with limited(), pytest.raises(TimeLimitError):
        fit(model, callback)
    assert slow.over.is_set()
    fit(model, callback)  # as if nothing had been
    assert is_plain(model)
    assert str(run_of(callback).packets[-1].state) == "finished"
