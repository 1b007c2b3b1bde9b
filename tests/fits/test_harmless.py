"""Training is the same, bit for bit, whatever the monitor and its server do; and nothing
is left behind.
"""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from command_line import clean_environment
from keras import layers
from loopback import Loopback, right, says_nothing
from tests.watched import offline_callback, run_of

from trainsanity import SanityCallback
from trainsanity.probes.masks import Masks
from trainsanity.spooled import SpooledRun

BACKEND = keras.backend.backend()


def tagger(**compile_options: Any) -> keras.Model:
    """Masks, dropout, batch normalization and a recurrent layer: all that a forward pass
    may change.
    """
    inputs = keras.Input((9,), dtype="int32")
    embedded = layers.Embedding(30, 8, mask_zero=True)(inputs)
    inner = layers.Dropout(0.2)(layers.Dense(8, activation="relu")(embedded))
    joined = layers.BatchNormalization()(layers.Add()([embedded, inner]))
    outputs = layers.Dense(4, activation="softmax")(layers.GRU(6, return_sequences=True)(joined))
    model = keras.Model(inputs, outputs)
    options = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy"}
    model.compile(**{**options, "metrics": ["accuracy"], **compile_options})
    return model


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(8)
    x = generator.integers(1, 30, size=(80, 9))
    for row, end in zip(x, generator.integers(3, 10, size=80), strict=True):
        row[end:] = 0
    return x, x % 4


def trained(
    *callbacks: Any, build: Callable[..., keras.Model] = tagger, **options: Any
) -> tuple[keras.Model, Any]:
    """A model trained from one seed, and its history; the batches are 16, the last one short."""
    keras.utils.set_random_seed(21)
    model = build(**options)
    x, y = data()
    history = model.fit(
        x, y, batch_size=24, epochs=2, verbose=0, validation_split=0.2, callbacks=[*callbacks]
    )
    return model, history.history


@functools.cache
def plainly_trained() -> tuple[keras.Model, Any]:
    """Without any callback; trained once for all tests that compare with it."""
    return trained()


def assert_same(left: tuple[keras.Model, Any], right: tuple[keras.Model, Any]) -> None:
    for a, b in zip(state_of(left[0]), state_of(right[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert left[1] == right[1]


def state_of(model: keras.Model) -> list[np.ndarray[Any, Any]]:
    """Weights, seeds and the optimizer's state."""
    variables = [*model.variables, *model.optimizer.variables]
    unique = {id(v): v for v in variables}
    return [np.array(keras.ops.convert_to_numpy(v)) for v in unique.values()]


MODES = {
    "compiled": {},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "several steps an execution": {"steps_per_execution": 3},
    "clipped momentum": {"optimizer": keras.optimizers.SGD},
}


@pytest.mark.parametrize("mode", MODES)
def test_gives_the_same_weights_with_and_without_the_callback(mode: str, tmp_path: Path) -> None:
    options = dict(MODES[mode])
    if BACKEND == "torch" and mode in ("xla", "several steps an execution"):
        pytest.skip("Keras on torch has no steps_per_execution, and compiles with another compiler")

    def build(**ignored: Any) -> keras.Model:
        own = dict(options)
        if own.get("optimizer") is keras.optimizers.SGD:
            own["optimizer"] = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5)
        return tagger(**own)

    plain = trained(build=build)
    callback = offline_callback(tmp_path)
    watched = trained(callback, build=build)
    assert_same(plain, watched)
    steps, sizes = run_of(callback).signal("batch/size")
    assert steps.tolist() == list(range(1, 7))
    assert sizes.tolist() == [24, 24, 16] * 2


# All other faults: tests/client/test_trainings.py.
SERVERS = {"right": right, "saying nothing": says_nothing}


@pytest.mark.parametrize("behaviour", SERVERS)
def test_trains_the_same_against_a_server(behaviour: str, tmp_path: Path) -> None:
    plain = plainly_trained()
    with closing(Loopback(SERVERS[behaviour])) as server:
        callback = SanityCallback(
            server.url, spool_dir=tmp_path, close_timeout=1.0, verbose=False, on_alert="silent"
        )
        assert_same(plain, trained(callback))


def unrolled(**ignored: Any) -> keras.Model:
    """The layers of the tagger that compile quickly."""
    model = keras.Sequential(
        [
            keras.Input((9,), dtype="int32"),
            layers.Embedding(30, 8, mask_zero=True),
            layers.Dropout(0.2),
            layers.BatchNormalization(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_leaves_no_trace_on_the_model(tmp_path: Path) -> None:
    """Attributes, what is saved, copied and cloned, and training that goes on without us."""
    (plain, _) = trained(build=unrolled)
    (watched, _) = trained(offline_callback(tmp_path), build=unrolled)
    for one, other in zip(parts_of(plain), parts_of(watched), strict=True):
        assert vars(one).keys() == vars(other).keys()
        # The train function is made anew when it is called for the first time.
        rest = [value for name, value in vars(other).items() if name != "train_function"]
        assert not any("trainsanity" in str(getattr(v, "__module__", "")) for v in rest)
    assert [m.name for m in plain.metrics] == [m.name for m in watched.metrics]

    copies = []
    for name, model in (("plain", plain), ("watched", watched)):
        keras.utils.set_random_seed(4)  # loaded dropout draws a seed
        model.save(tmp_path / f"{name}.keras")
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        copies.append([loaded, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)])
        assert len(keras.models.clone_model(model).weights) == len(model.weights)
        keras.utils.set_random_seed(5)
        x, y = data()
        model.fit(x, y, batch_size=24, verbose=0)
    for one, other in [(plain, watched), *zip(*copies, strict=True)]:
        for a, b in zip(state_of(one), state_of(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_model_inside_is_left_as_it_is(tmp_path: Path) -> None:
    """Keras decides whether to compile it when it is saved, as our audits do."""
    inside = []
    for callbacks in ([], [offline_callback(tmp_path)]):
        inner = keras.Sequential([keras.Input((3,)), layers.Dense(4)], name="inner")
        model = keras.Sequential([keras.Input((3,)), inner, layers.Dense(1)])
        model.compile("sgd", "mse")
        x = np.ones((12, 3), "float32")
        model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=callbacks)
        simple = (bool, int, float, str, type(None))
        inside.append({k: v for k, v in vars(inner).items() if isinstance(v, simple)})
    plain, watched = inside
    assert plain == watched
    assert plain["_jit_compile"] is None


def test_a_regularizer_is_called_as_often_as_without_us(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counted(keras.regularizers.L2):
        def __call__(self, x: Any) -> Any:
            calls.append(1)
            return super().__call__(x)

    found = []
    for callbacks in ([], [offline_callback(tmp_path, audit_budget=0)]):
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(1, kernel_regularizer=Counted(0.1))]
        )
        model.compile("sgd", "mse", run_eagerly=True)
        calls.clear()
        x = np.ones((12, 3), "float32")
        model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        found.append(len(calls))
    assert found[0] == found[1] > 0


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there a read can be made to copy")
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_reading_a_weight_copies_nothing_afterwards(run_eagerly: bool, tmp_path: Path) -> None:
    """TensorFlow copies a variable at every read once some of its elements were asked for."""
    model = tagger(run_eagerly=run_eagerly)
    x, y = data()
    model.fit(x, y, batch_size=20, verbose=0, callbacks=[offline_callback(tmp_path)])
    for variable in (*model.variables, *model.optimizer.variables):
        reads = [variable.value.read_value() for _ in range(2)]
        first, second = (np.from_dlpack(read).ctypes.data for read in reads)
        assert first == second, variable.path


def test_leaves_keras_to_name_layers_in_a_new_thread(tmp_path: Path) -> None:
    """There, as after `clear_session`, Keras has not begun to count names."""
    names: list[str] = []

    def work() -> None:
        x, y = data()
        model.fit(x, y[:, 0], verbose=0, callbacks=[offline_callback(tmp_path)])
        names.append(layers.Dense(1).name)

    model = dense()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert names == ["dense"]


def parts_of(model: keras.Model) -> list[Any]:
    return [*model._flatten_layers(), model.optimizer, *model.metrics]


class Tracker(keras.callbacks.Callback):
    """Logs as W&B's callback does: what Keras shows after each batch, and weights after epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(dict(logs or {}))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append([w.tolist() for w in self.model.get_weights()])


def dense() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((9,)), layers.Dense(8, "tanh"), layers.Dense(4, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_goes_along_with_other_callbacks_in_any_order(tmp_path: Path) -> None:
    def fit(name: str, first: list[Any], last: list[Any]) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        keras.utils.set_random_seed(3)
        model, tracker = dense(), Tracker()
        others = [
            keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            tracker,
        ]
        # It writes with TensorFlow, and is a package of its own.
        if BACKEND == "tensorflow" and find_spec("tensorboard") is not None:
            others.append(keras.callbacks.TensorBoard(folder / "board", update_freq=1))
        x, y = data()
        callbacks = [*first, *others, *last]
        model.fit(x, y[:, 0], batch_size=24, epochs=2, verbose=0, callbacks=callbacks)
        saved = [state_of(keras.models.load_model(folder / f"{n}.keras")) for n in (1, 2)]
        return (folder / "log.csv").read_text(), tracker.seen, saved, state_of(model)

    plain = fit("plain", [], [])
    for name in ("first", "last"):
        callback = offline_callback(tmp_path / f"{name}_spool")
        watched = fit(name, [callback][: name == "first"], [callback][: name == "last"])
        assert watched[:2] == plain[:2]
        for one, other in zip([*plain[2], plain[3]], [*watched[2], watched[3]], strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
        run = run_of(callback)
        assert run.signal("batch/size")[0].tolist() == list(range(1, 9))
        assert [finding.title for _, finding in run.judge().at_least("warning")] == []


class Rows(np.ndarray[Any, Any]):
    """An array that can be referred to weakly."""


class Averaged(keras.layers.Dense):
    """A layer that writes to its weights at each call, as those do that keep them in bounds."""

    def call(self, inputs: Any) -> Any:
        self.kernel.assign(self.kernel * 0.5)
        return super().call(inputs)


def test_weights_that_share_memory_with_their_averages_stay_whole(tmp_path: Path) -> None:
    """On JAX an evaluation consumes the weights, and with them what is in their place."""
    model, (x, y) = dense(), data()
    model.compile(keras.optimizers.Adam(use_ema=True), "sparse_categorical_crossentropy")
    model.fit(x, y[:, 0], verbose=0, callbacks=[offline_callback(tmp_path)])
    assert all(np.isfinite(value).all() for value in state_of(model))


def test_keeps_no_data_alive_after_fit(tmp_path: Path) -> None:
    """Nor do the frames of functions that are still running, of which some are looked at."""
    x = np.ones((8, 3), "float32").view(Rows)
    still = weakref.ref(x)
    model = keras.Sequential([keras.Input((3,)), Averaged(1)])
    model.compile("sgd", "mse")
    model.fit(x, np.ones((8, 1)), verbose=0, callbacks=[offline_callback(tmp_path)])
    del x
    gc.collect()
    assert still() is None


class Fails(keras.callbacks.Callback):
    """A callback of the user's that raises."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        raise RuntimeError("the user's own error")


def test_lets_the_users_error_through_and_ends_the_run_as_failed(tmp_path: Path) -> None:
    model = tagger()
    callback = offline_callback(tmp_path)
    x, y = data()
    with pytest.raises(RuntimeError, match="the user's own error"):
        model.fit(x, y, verbose=0, callbacks=[callback, Fails()])
    model.fit(x, y, verbose=0, callbacks=[offline_callback(tmp_path / "next")])
    assert "call" not in vars(model.layers[1])


class NotBuilt(keras.layers.Embedding):  # type: ignore[misc] # Keras is Any to mypy
    """A layer that cannot be built, as those whose initializer lacks a dtype."""

    def build(self, input_shape: Any = None) -> None:
        raise TypeError("the layer's own error")


def test_a_layer_that_fails_when_it_is_built_fails_in_the_same_words(tmp_path: Path) -> None:
    """Keras looks at the signature of its `call` to say what is wrong."""
    said = []
    for ours in ([], [offline_callback(tmp_path)]):
        model = keras.Sequential([NotBuilt(9, 2, mask_zero=True), layers.Dense(1)])
        model.compile("sgd", "mse")
        with pytest.raises(Exception, match=r"own error|build the model") as error:
            model.fit(np.ones((4, 3), int), np.ones((4, 3, 1)), verbose=0, callbacks=ours)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_a_failing_probe_is_switched_off_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("the probe's own error")

    plain = plainly_trained()
    monkeypatch.setattr(Masks, "trace_loss", fail)
    callback = offline_callback(tmp_path)
    assert_same(plain, trained(callback))
    run = run_of(callback)
    (failed,) = run.audits("probe_failed")
    assert failed.facts["probe"] == "masks"
    assert "the probe's own error" in failed.facts["error"]
    assert run.judge().verdicts["probe-failed"][0] == "alert"
    assert len(run.signal("loss/reported")[0]) == 6


def test_can_be_used_again_copied_and_pickled(tmp_path: Path) -> None:
    callback = offline_callback(tmp_path)
    x, y = data()
    model = tagger()
    ids = set()
    for each in (callback, callback, copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        model.fit(x, y, verbose=0, callbacks=[each])
        ids.add(each.run_id)
    assert len(ids) == 4


def test_lets_only_one_of_two_watch(tmp_path: Path) -> None:
    plain = plainly_trained()
    first, second = (offline_callback(tmp_path / name) for name in ("first", "second"))
    assert_same(plain, trained(first, second))
    assert len(run_of(first).signal("loss/reported")[0]) == 6
    assert not list((tmp_path / "second").glob("*.spool"))


def test_a_callback_that_is_twice_in_the_list_watches_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = SanityCallback("offline", spool_dir=tmp_path, keep_spool=True, close_timeout=300.0)
    trained(callback, callback)
    run = run_of(callback)
    epochs = [audit.facts["epoch"] for audit in run.audits("epoch")]
    assert epochs == sorted(set(epochs))
    assert run.packets[-1].state == "finished"
    assert capsys.readouterr().err.count("trainsanity: watching") == 1


def test_watches_a_lone_evaluate(tmp_path: Path) -> None:
    model = tagger()
    callback = offline_callback(tmp_path)
    x, y = data()
    shown = model.evaluate(x, y, batch_size=20, verbose=0, callbacks=[callback], return_dict=True)
    run = run_of(callback)
    assert run.packets[0].run is not None
    assert run.packets[0].run["kind"] == "evaluate"
    steps, reported = run.signal("loss/reported")
    assert steps.tolist() == [1, 2, 3, 4]
    assert reported[-1] == pytest.approx(shown["loss"], rel=1e-6)


PROCESS = """
import sys
import keras, numpy as np
from trainsanity import SanityCallback

x = np.ones((32, 3), "float32")
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
callback = SanityCallback("offline", spool_dir=sys.argv[1], verbose=False)
model.fit(x, x[:, :1], verbose=0, callbacks=[callback])
assert "tensorflow" not in sys.modules
model.save(sys.argv[1] + "/own.keras")
assert "tensorflow" in sys.modules, "Keras does so by itself"
"""


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it is there")
def test_tensorflow_is_not_brought_into_the_process(tmp_path: Path) -> None:
    """It takes seconds and hundreds of MiB, and may get in the way of the other one on a GPU."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    environment = clean_environment(KERAS_BACKEND=BACKEND)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (spool,) = tmp_path.glob("*.spool")
    (audit,) = SpooledRun.read(spool).audits("roundtrip")
    assert "not_testable" not in audit.facts


COMPILED = """
import sys
import keras
import numpy as np
from trainsanity import SanityCallback

keras.utils.set_random_seed(3)
tokens = keras.Input((6,), dtype="int32")
x = keras.layers.Embedding(20, 4, mask_zero=True)(tokens)
x = keras.layers.Add()([x, keras.layers.Dense(4, activation="relu")(x)])
model = keras.Model(tokens, keras.layers.Dense(3, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
ids = np.arange(96).reshape(16, 6) % 20
callback = SanityCallback("offline", spool_dir=sys.argv[1], verbose=False)
model.fit(ids, ids % 3, sample_weight=ids % 2, batch_size=8, verbose=0, callbacks=[callback])
"""


@pytest.mark.skipif(BACKEND != "jax", reason="JAX keeps what it has compiled")
def test_a_second_start_finds_all_that_the_first_one_has_compiled(tmp_path: Path) -> None:
    """The programs must be the same to the letter, whatever the order of a set of names is.

    Those of the step: which audits there is time for may differ.
    """
    kept = tmp_path / "compiled"
    found = []
    for seed in ("1", "2"):
        environment = clean_environment(
            KERAS_BACKEND="jax", PYTHONHASHSEED=seed, JAX_COMPILATION_CACHE_DIR=str(kept)
        )
        command = [sys.executable, "-c", COMPILED, str(tmp_path)]
        subprocess.run(command, env=environment, check=True)
        found.append({path.name for path in kept.glob("jit_step-*-cache")})
    assert found[0]
    assert found[1] == found[0]


@pytest.mark.skipif(BACKEND == "jax", reason="two more steps to compile tell nothing new")
@pytest.mark.filterwarnings("error")
def test_fits_side_by_side_need_no_warnings_and_leave_the_filters_alone(tmp_path: Path) -> None:
    """Python's own way to silence warnings is one for all threads, and may leave them silent."""
    before, (x, y) = list(warnings.filters), data()
    meeting = threading.Barrier(2)

    def work(shift: int) -> SpooledRun:
        model, callback = dense(), offline_callback(tmp_path, on_alert="silent")
        meeting.wait()
        model.fit(x, y[:, 0], batch_size=40 + shift, verbose=0, callbacks=[callback])
        return run_of(callback)

    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(work, (0, 40)))
    assert list(warnings.filters) == before
    assert [run.audits("probe_failed") for run in runs] == [[], []]
