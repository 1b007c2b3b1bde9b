"""Calls of `fit` that do not end as they should: what was measured by then is intact, `sync`
completes the run on a real server, and the model is as if nobody had watched it.
"""

from __future__ import annotations

import code
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import keras
import numpy as np
import pytest
from command_line import Served, clean_environment, served, trainsanity
from loopback import LONG
from watched import let_earlier_runs_end, offline_callback, run_of

from trainsanity.readings import Readings
from trainsanity.spooled import SpooledRun
from trainsanity.stream import RunStream
from trainsanity.watched_call import WatchedCall

BACKEND = keras.backend.backend()
BATCHES, LAST = 6, 4  # of each epoch; batch of the second epoch at which it ends


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server") / "runs.db") as running:
        yield running


class Data(keras.utils.PyDataset):
    """Batches, of which one may not be readable."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self._fails_at, self._given = fails_at, 0

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        self._given += 1
        if self._given == self._fails_at:
            raise OSError("the disk with the images is gone")
        x = np.random.default_rng(index).normal(size=(4, 3)).astype("float32")
        return x, x @ np.ones((3, 1), "float32")


class AtBatch(keras.callbacks.Callback):
    """Something that happens after a batch of the second epoch."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self._act, self._epoch = act, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch == 1 and batch == LAST - 1:
            self._act()


class Hungry(keras.Sequential):
    """Its step takes more memory than there is, once."""

    ends_at: int | None = None
    steps_taken = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.steps_taken += 1
        if self.steps_taken == self.ends_at:
            raise MemoryError("no room for 17 GiB")
        return super().compute_loss(*args, **kwargs)


class Count(keras.callbacks.Callback):
    """Batches that have been trained on."""

    batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


def fail() -> None:
    raise RuntimeError("the user's own error")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


Fit = Callable[[keras.Model, list[Any]], Any]
ENDS = BATCHES + LAST


def fit_with(act: Callable[[], None]) -> Fit:
    return lambda model, own: model.fit(
        Data(), epochs=3, verbose=0, shuffle=False, callbacks=[*own, AtBatch(act)]
    )


def fit_broken_data(model: keras.Model, own: list[Any]) -> Any:
    return model.fit(Data(fails_at=ENDS + 1), epochs=3, verbose=0, shuffle=False, callbacks=own)


def fit_without_memory(model: keras.Model, own: list[Any]) -> Any:
    model.ends_at = ENDS + 1
    return model.fit(Data(), epochs=3, verbose=0, shuffle=False, callbacks=own)


ENDINGS: dict[str, Fit] = {
    "Ctrl-C": fit_with(interrupt),
    "an exception in another callback": fit_with(fail),
    "an exception in the data": fit_broken_data,
    "no memory left in a step": fit_without_memory,
}


def small(ending: str) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = Hungry([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"], run_eagerly="memory" in ending)
    return model


def parts(model: keras.Model) -> list[dict[str, Any]]:
    """What can be seen of the model, its layers and its optimizer: attributes and their values."""
    owners = [*model._flatten_layers(), model.optimizer]
    return [dict(vars(owner)) for owner in owners]


def weights(model: keras.Model) -> list[Any]:
    every = {id(v): v for v in (*model.variables, *model.optimizer.variables)}
    return [keras.ops.convert_to_numpy(v) for v in every.values()]


def ended_by(fit: Fit, model: keras.Model, own: list[Any]) -> BaseException:
    with pytest.raises(BaseException, match=r".*") as caught:
        fit(model, own)
    return caught.value


@pytest.mark.parametrize("ending", ENDINGS)
def test_ends_as_without_the_callback_and_is_completed_by_sync(
    ending: str, tmp_path: Path, server: Served
) -> None:
    fit = ENDINGS[ending]
    plain, watched = small(ending), small(ending)
    error = ended_by(fit, plain, [])
    callback, count = offline_callback(tmp_path), Count()
    same = ended_by(fit, watched, [callback, count])
    assert BATCHES < count.batches <= ENDS  # data may be read ahead

    assert type(same) is type(error)
    for a, b in zip(weights(plain), weights(watched), strict=True):
        np.testing.assert_array_equal(a, b)
    del error, same  # with the frames that they hold, whose place others may take

    for model in (plain, watched):
        model.fit(Data(), epochs=1, verbose=0, shuffle=False)
    for a, b in zip(weights(plain), weights(watched), strict=True):
        np.testing.assert_array_equal(a, b)
    for left, right in zip(parts(plain), parts(watched), strict=True):
        assert left.keys() == right.keys()

    run = run_of(callback)
    assert run.packets[-1].state == "failed"
    assert run.signal("batch/size")[0].tolist() == list(range(1, count.batches + 1))
    check_completed(run, tmp_path, server)


class Impatient(Hungry):
    """Interrupted once, while its step is compiled."""

    waits = False

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.waits:
            self.waits = False
            interrupt()
        return super().compute_loss(*args, **kwargs)


def impatient() -> keras.Model:
    keras.utils.set_random_seed(2)
    model = Impatient([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def test_an_interrupt_in_the_first_step_of_all_costs_no_weights(tmp_path: Path) -> None:
    """On JAX the variables are empty then, and Keras has nothing yet to put back into them."""
    untrained, model = impatient(), impatient()
    begin = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: setattr(model, "waits", True)
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(Data(), verbose=0, callbacks=[offline_callback(tmp_path), begin])
    for a, b in zip(weights(untrained), weights(model), strict=False):  # slots may be new
        np.testing.assert_array_equal(a, b)
    model.fit(Data(), verbose=0, shuffle=False)


def test_an_interrupt_while_we_read_costs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On JAX the step has consumed the weights it was given, and Keras does not have the new."""
    plain, model = impatient(), impatient()
    with pytest.raises(KeyboardInterrupt):
        fit_with(interrupt)(plain, [])
    read = Readings.after_training

    def interrupted(readings: Readings, *args: Any) -> None:
        read(readings, *args)
        if readings._run.step == ENDS:
            interrupt()

    monkeypatch.setattr(Readings, "after_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_with(fail)(model, [offline_callback(tmp_path)])
    for a, b in zip(weights(plain), weights(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_ends_although_a_notebook_keeps_the_traceback(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with it all frames, and Keras' iterator."""
    for name in ("last_exc", "last_value", "last_type", "last_traceback"):
        monkeypatch.setattr(sys, name, None, raising=False)
    known, count = set(threading.enumerate()), Count()
    model, callback = small("Ctrl-C"), offline_callback(tmp_path)
    other = keras.callbacks.Callback()
    setattr(other, hook, lambda *_, **__: interrupt())

    cell = {"fit": lambda: model.fit(Data(), verbose=0, callbacks=[callback, count, other])}
    shell = code.InteractiveInterpreter(cell)
    shell.write = lambda _: None  # type: ignore[method-assign]
    shell.runsource("fit()")
    assert isinstance(sys.last_value, KeyboardInterrupt)
    for thread in set(threading.enumerate()) - known:
        if thread.name == "trainsanity-spool":
            thread.join(LONG)

    run = run_of(callback)
    assert run.packets[-1].state == "failed"
    assert run.signal("batch/size")[0].tolist() == list(range(1, count.batches + 1))

    assert "make_train_function" in vars(model)
    model.fit(Data(), epochs=1, verbose=0, shuffle=False)
    assert "make_train_function" not in vars(model), "the next call has it to itself"
    assert run_of(callback).signal("batch/size")[0][-1] == count.batches


def test_the_end_of_a_left_call_is_not_awaited_in_a_finalizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes at any point of any thread, and would swallow an interrupt."""
    let_earlier_runs_end()  # they close streams too
    closing, close = [], RunStream.close

    def noted(stream: RunStream, *args: Any, **kwargs: Any) -> Any:
        closing.append(threading.current_thread().name)
        return close(stream, *args, **kwargs)

    monkeypatch.setattr(RunStream, "close", noted)
    known, callback = set(threading.enumerate()), offline_callback(tmp_path)
    other = keras.callbacks.Callback()
    heard = []

    def leave(*_: Any, **__: Any) -> None:
        heard.append("write" in vars(sys.stdout))
        fail()

    other.on_epoch_end = leave
    with pytest.raises(RuntimeError, match="the user's own error"):
        small("fail").fit(Data(), verbose=0, callbacks=[callback, other])
    gc.collect()  # pytest's cycle of the error and the frames that it holds
    for thread in set(threading.enumerate()) - known:
        if thread.name == "trainsanity-spool":
            thread.join(LONG)
    assert closing == ["trainsanity-end"]
    assert run_of(callback).packets[-1].state == "failed"
    assert heard == [True]
    assert "write" not in vars(sys.stdout)


def test_the_next_call_is_watched_although_a_notebook_keeps_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step that failed, as that of a call whose data cannot be read."""
    for name in ("last_exc", "last_value", "last_type", "last_traceback"):
        monkeypatch.setattr(sys, name, None, raising=False)
    model = small("an exception in the data")
    first, second = (offline_callback(tmp_path / name) for name in ("first", "second"))
    shell = code.InteractiveInterpreter({"fit": lambda: fit_broken_data(model, [first])})
    shell.write = lambda _: None  # type: ignore[method-assign]
    shell.runsource("fit()")
    assert sys.last_value is not None

    model.fit(Data(), verbose=0, shuffle=False, callbacks=[second])
    run = run_of(second)
    assert run.packets[-1].state == "finished"
    assert run.signal("batch/size")[0].tolist() == list(range(1, BATCHES + 1))
    assert not {"make_train_function", "train_step", "compute_loss"} & vars(model).keys()


def test_a_call_that_rests_in_a_debugger_is_not_taken_for_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for an error in what was typed there."""
    for name in ("last_exc", "last_value", "last_type", "last_traceback"):
        monkeypatch.setattr(sys, name, None, raising=False)
    looked, answers, look = threading.Semaphore(0), [], WatchedCall.is_known_left

    def noted(call: WatchedCall) -> bool:
        answers.append(look(call))
        looked.release()
        return answers[-1]

    def rest() -> None:
        shell = code.InteractiveInterpreter()
        shell.write = lambda _: None  # type: ignore[method-assign]
        shell.runsource("(lambda: 1 / 0)()")
        assert isinstance(sys.last_value, ZeroDivisionError)
        for _ in range(3):
            assert looked.acquire(timeout=LONG)

    monkeypatch.setattr(WatchedCall, "is_known_left", noted)
    callback = offline_callback(tmp_path)
    fit_with(rest)(small("rest"), [callback])
    run = run_of(callback)
    assert not any(answers)
    assert run.packets[-1].state == "finished"
    assert run.signal("batch/size")[0].tolist() == list(range(1, 3 * BATCHES + 1))


def check_completed(run: SpooledRun, folder: Path, server: Served, state: str = "failed") -> None:
    """`trainsanity sync` delivers the run, and a second time there is nothing to do."""
    run_id, steps = run.packets[0].run_id, run.signal("loss/reported")[0]
    sync = ("sync", folder, "--url", server.url)
    done = trainsanity(*sync)
    assert done.status == 0, done.err
    assert trainsanity(*sync).status == 0
    address = f"{server.url}/api/v1/runs/{run_id}"
    stored = httpx2.get(address, timeout=LONG).json()
    assert stored["state"] == state
    signals = httpx2.get(f"{address}/signals", timeout=LONG).json()["signals"]
    (loss,) = [signal for signal in signals if signal["name"] == "loss/reported"]
    assert (loss["first_step"], loss["last_step"], loss["count"]) == (1, steps[-1], len(steps))


# A process that ends while it trains

TRAINS = """
import code
import os, sys, threading
from pathlib import Path
import keras, numpy as np
from trainsanity import SanityCallback, records, wire
from trainsanity.spool import MAGIC

folder, how = sys.argv[1:]
x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
callback = SanityCallback("offline", spool_dir=folder, verbose=False)
under_way = threading.Event()

def steps_on_disk():
    (path,) = Path(folder).glob("*.spool")
    with path.open("rb") as file:
        _, *packets = records.read_all(file, len(MAGIC))
    return sum(len(block.steps) for p in packets for block in wire.decode(p).blocks)

class Watcher(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if not under_way.is_set() and (how == "fork" or steps_on_disk() >= 8):
            print("under way", flush=True)
            under_way.set()
        if how == "fork" and epoch < 3:
            child = os.fork()
            if child == 0:  # goes on with what it has inherited
                status = 1
                try:
                    callback.on_epoch_end(epoch, logs)
                    callback.on_train_end()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0

def fit(epochs):
    model.fit(x, x[:, :1], batch_size=8, epochs=epochs, verbose=0, callbacks=[callback, Watcher()])

if how == "thread":
    threading.Thread(target=fit, args=(10**9,), daemon=True).start()
    under_way.wait()
elif how == "fork":
    fit(4)
else:
    fit(10**9)
"""


PROCESSES = ["kill", "thread", "fork"] if BACKEND == "tensorflow" else ["thread"]


@pytest.mark.parametrize("how", PROCESSES)
def test_a_process_that_ends_while_it_trains_leaves_a_whole_spool(
    how: str, tmp_path: Path, server: Served
) -> None:
    command = [sys.executable, "-c", TRAINS, str(tmp_path), how]
    environment = clean_environment(KERAS_BACKEND=BACKEND)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "under way\n"
        if how == "kill":
            child.kill()
    # A backend in the middle of its own C++ may abort when the interpreter ends, watched or not.
    own_ends = {"kill": {-signal.SIGKILL}, "thread": {0, -signal.SIGABRT}, "fork": {0}}
    assert child.returncode in own_ends[how]

    (path,) = tmp_path.glob("*.spool")
    run = SpooledRun.read(path)
    steps = run.signal("batch/size")[0].tolist()
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 8
    if how == "fork":
        assert (len(steps), run.packets[-1].state) == (32, "finished")
        assert len(run.audits("epoch")) == 4
    check_completed(run, tmp_path, server, "finished" if how == "fork" else "failed")


RAISES = """
import sys
import keras, numpy as np
from trainsanity import SanityCallback

class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("the user's own error")

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
ours = SanityCallback("offline", spool_dir=sys.argv[1], verbose=False)
own = [Fails()] if sys.argv[2] == "without" else [ours, Fails()]
model.fit(np.zeros((8, 3)), np.zeros((8, 1)), verbose=0, callbacks=own)
"""


def test_an_error_that_ends_the_process_is_told_as_without_the_callback(tmp_path: Path) -> None:
    told = {}
    for how in ("without", "with"):
        command = [sys.executable, "-c", RAISES, str(tmp_path), how]
        environment = clean_environment(KERAS_BACKEND=BACKEND)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        told[how] = done.stderr[done.stderr.index("Traceback") :].partition("trainsanity:")[0]
    assert told["with"] == told["without"]
    assert "the user's own error" in told["with"]
