"""What a callback of the user's changes on the model during `fit` holds as without us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import offline_callback, run_of

X = np.random.default_rng(1).normal(size=(24, 5)).astype("float32")
BACKEND = keras.backend.backend()
Change = Callable[[keras.Model], Any]


class Changes(keras.callbacks.Callback):  # type: ignore[misc] # Keras is Any to mypy
    """Does something to the model, as training begins and at the end of the first epoch."""

    def __init__(self, at_begin: Change | None = None, at_end: Change | None = None) -> None:
        super().__init__()
        self._does = {"begin": at_begin, "end": at_end}

    def on_train_begin(self, logs: Any = None) -> None:
        self._do("begin")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self._do("end")

    def _do(self, when: str) -> None:
        if does := self._does[when]:
            does(self.model)


def net() -> keras.Model:
    hidden = [layers.Dense(4, "tanh"), layers.Dense(3, "tanh")]
    model = keras.Sequential([keras.Input((5,)), *hidden, layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def fit(model: keras.Model, *callbacks: Any) -> dict[str, list[float]]:
    arguments = {"batch_size": 8, "epochs": 2, "verbose": 0}
    history = model.fit(X, X[:, :1], **arguments, callbacks=[*callbacks])
    return dict(history.history)


def twice(change: Changes, folder: Any, *, watched: bool, is_first: bool) -> list[Any]:
    """What two fits show, and the weights: ours watches the first one."""
    keras.utils.set_random_seed(3)
    model = net()
    ours = [offline_callback(folder)] if watched else []
    callbacks = [*ours, change] if is_first else [change, *ours]
    shown = [fit(model, *callbacks)]
    if BACKEND != "jax":  # where Keras fails then
        model.layers[1].trainable = False  # which a step that is traced already does not hear of
    shown.append(fit(model))
    if ours:
        assert not run_of(ours[0]).audits("probe_failed")
    return [shown, [keras.ops.convert_to_numpy(v).tolist() for v in model.variables], model]


METHODS: tuple[tuple[Change, str], ...] = (
    (lambda model: model, "compute_loss"),
    (lambda model: model, "train_step"),
    (lambda model: model, "evaluate"),
    (lambda model: model, "make_train_function"),
    (lambda model: model.optimizer, "apply"),
    (lambda model: model.layers[0], "call"),
)


def put_own(model: keras.Model) -> None:
    """Puts a method of the user's over each."""
    for of, name in METHODS:
        owner = of(model)
        owner.__dict__[name] = _own(getattr(owner, name))


def _own(original: Any) -> Any:
    def own(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    return own


@pytest.mark.parametrize("is_first", [True, False])
def test_methods_that_were_put_over_ours_stay(is_first: bool, tmp_path: Any) -> None:
    pair = [
        twice(Changes(put_own), tmp_path, watched=watched, is_first=is_first)
        for watched in (False, True)
    ]
    assert pair[1][:2] == pair[0][:2]
    names = {vars(owner(pair[1][2]))[name].__name__ for owner, name in METHODS}
    assert names == {"own"}


def freeze(model: keras.Model) -> None:
    model.layers[0].trainable = False
    model.make_train_function(force=True)


def count(model: keras.Model) -> None:
    """Puts a function over the compiled one, which says at each step that it was called."""
    compiled = model.train_function

    def counted(*args: Any) -> Any:
        model.steps = getattr(model, "steps", 0) + 1
        return compiled(*args)

    model.train_function = counted


def exchange(model: keras.Model) -> None:
    model.compile("sgd", "mae", metrics=["mse"])
    model.make_train_function()


CHANGES = {"freeze": freeze, "count": count, "exchange": exchange}


@pytest.mark.skipif(BACKEND == "jax", reason="there Keras itself fails")
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_functions_that_were_made_anew_stay(name: str, is_first: bool, tmp_path: Any) -> None:
    change = Changes(at_end=CHANGES[name])
    pair = [
        twice(change, tmp_path, watched=watched, is_first=is_first) for watched in (False, True)
    ]
    assert pair[1][:2] == pair[0][:2]
    assert getattr(pair[1][2], "steps", 0) == getattr(pair[0][2], "steps", 0)


@pytest.mark.skipif(BACKEND == "jax", reason="there Keras itself fails")
def test_updates_are_not_counted_across_two_optimizers(tmp_path: Any) -> None:
    callback = offline_callback(tmp_path)
    fit(net(), callback, Changes(at_end=exchange))
    said = {rule.id for rule, _ in run_of(callback).judge().at_least("warning")}
    assert "step-count-mismatch" not in said


@pytest.mark.skipif(BACKEND != "tensorflow", reason="where a step holds what it was traced with")
def test_data_of_another_shape_are_trained_with_the_flags_of_then(tmp_path: Any) -> None:
    import tensorflow as tf

    def of(size: int) -> Any:
        return tf.data.Dataset.from_tensor_slices((X, X[:, :1])).batch(size, drop_remainder=True)

    def weights(*callbacks: Any) -> list[Any]:
        keras.utils.set_random_seed(3)
        model = net()
        model.fit(of(8), shuffle=False, verbose=0, callbacks=[*callbacks])
        model.layers[0].trainable = False
        found = []
        for size in (6, 8):  # of the first, nothing has been traced before
            model.fit(of(size), shuffle=False, verbose=0)
            found.append(model.layers[0].get_weights()[0].tolist())
        return found

    alone = weights()
    assert weights(offline_callback(tmp_path)) == alone
    assert alone[0] != alone[1]  # Keras trains frozen weights with the step traced before


@pytest.mark.parametrize("watches", ["first", "both"])
def test_what_a_step_was_traced_with_stays_true_in_a_later_fit(watches: str, tmp_path: Any) -> None:
    """A number that Python reads while a step is traced is a constant of it from then on."""

    def weights(*callbacks: Any, in_second: bool = False) -> list[Any]:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5,))
        model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.5)(inputs)))
        model.compile("adam", "mse")
        fit(model, *callbacks)
        model.layers[1].rate = 0.25
        fit(model, *(callbacks if in_second else ()))
        assert model.layers[1].rate == 0.25
        return [keras.ops.convert_to_numpy(v).tolist() for v in model.variables]

    assert weights(offline_callback(tmp_path), in_second=watches == "both") == weights()


class Seen(layers.Layer):  # type: ignore[misc] # Keras is Any to mypy
    """Counts how often Python runs it."""

    calls = 0

    def call(self, inputs: Any) -> Any:
        Seen.calls += 1
        return inputs


@pytest.mark.skipif(BACKEND == "torch", reason="always runs Python code")
def test_a_step_stays_compiled_where_only_the_switch_is_set_later(tmp_path: Any) -> None:
    def calls(*callbacks: Any) -> int:
        """In a second fit, with the switch set."""
        model = keras.Sequential([keras.Input((5,)), Seen(), layers.Dense(1)])
        model.compile("adam", "mse")
        fit(model, *callbacks)
        model.run_eagerly = True
        before = Seen.calls
        fit(model)
        return Seen.calls - before

    assert calls() == 0
    assert calls(offline_callback(tmp_path)) <= 2  # to be traced once more, and no step


@pytest.mark.filterwarnings("ignore:Even though the .tf.config")
@pytest.mark.skipif(BACKEND == "torch", reason="always runs so")
def test_a_step_that_is_told_to_run_at_once_is_not_traced_anew(tmp_path: Any) -> None:
    @contextmanager
    def at_once() -> Iterator[None]:
        if BACKEND == "jax":
            import jax

            with jax.disable_jit():
                yield
            return
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)

    callback = offline_callback(tmp_path)
    with at_once():
        fit(net(), callback)
    run = run_of(callback)
    assert not run.audits("probe_failed")
    assert not run.judge().at_least("warning")
    assert len(run.signal("loss/recomputed")[0]) == 6
