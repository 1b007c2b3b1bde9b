"""Evidence where a step is compiled: after a while a second program leaves out what need not be
measured at every step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import watched_fit

from trainsanity import backends, pace, programs
from trainsanity.spooled import SpooledRun
from trainsanity.tape import TapeReader

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="its step runs as Python code")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="is about JAX")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="is about TensorFlow")

ROWS, BATCH, EPOCHS = 490, 4, 2  # the last batch of each epoch is a short one
BATCHES = 123
STRIDE = 20
Active = type(backends.active())
COMPARED = 2 * programs.COMPARED
POISON = 90  # a step without a turn, whose batch holds NaN


class Counted(layers.Layer):
    """Code of the user's that runs while a step is traced, and leaves a number in it."""

    traces = 0

    def call(self, x: Any, training: bool = False) -> Any:
        Counted.traces += bool(training)
        return x * (1.0 + 1e-3 * Counted.traces)


def made(**options: Any) -> keras.Model:
    """Compiled by XLA where nothing else is said."""
    options = {"jit_compile": True, **options}
    Counted.traces = 0
    keras.utils.set_random_seed(3)
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(40, 8, mask_zero=True, name="table")(ids)
    x = layers.BatchNormalization()(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.3)(Counted()(layers.Dense(16, "gelu")(x)))
    model = keras.Model(ids, layers.Dense(3, "softmax")(x))
    optimizer = keras.optimizers.AdamW(1e-2, global_clipnorm=0.5)
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], weighted_metrics=["accuracy"], **options)
    return model


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any, Any]:
    random = np.random.default_rng(1)
    ids = random.integers(1, 40, (ROWS, 6))
    ids[np.arange(6) >= random.integers(2, 7, (ROWS, 1))] = 0
    weights = random.uniform(0.5, 2.0, ROWS).astype("float32")
    return ids, random.integers(0, 3, ROWS), weights


FIT: dict[str, Any] = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False}


def fit(data: Any, model: keras.Model) -> SpooledRun:
    """Without audits, which call the user's code themselves."""
    x, y, weights = data
    return watched_fit(model, x, y, sample_weight=weights, **FIT, options={"audit_budget": 0})


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second program is made at once."""
    monkeypatch.setattr(programs, "WORTH", 0.0)
    monkeypatch.setattr(programs, "MANY_WEIGHTS", 0)
    monkeypatch.setattr(pace, "FIRST", 0)
    monkeypatch.setattr(pace, "affordable", lambda *_: STRIDE)


WAYS: dict[str, list[dict[str, Any]]] = {
    "jax": [{"steps_per_execution": 1}, {"steps_per_execution": 4}],
    "tensorflow": [{"jit_compile": False}, {"jit_compile": True}],
    "torch": [{}],
}


@pytest.fixture(scope="module", params=WAYS[BACKEND], ids=str)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


@pytest.fixture(scope="module")
def models(data: Any, options: Any) -> tuple[keras.Model, SpooledRun, int, keras.Model, Any]:
    """A model and its run with turns, how often the user's code was traced, and another pair whose
    probes all look at every step.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "WORTH", 0.0)
        patch.setattr(programs, "MANY_WEIGHTS", 0)
        patch.setattr(pace, "FIRST", 0)
        patch.setattr(pace, "affordable", lambda *_: STRIDE)
        thinned = made(**options)
        run = fit(data, thinned)
        traces = Counted.traces
        every = made(**options)
        patch.setattr(pace, "affordable", lambda *_: 1)
        patch.setattr(pace, "TRIAL", 1)
        patch.setattr(programs, "WORTH", 1e9)
        return thinned, run, traces, every, fit(data, every)


@pytest.fixture(scope="module")
def run(models: Any) -> SpooledRun:
    found: SpooledRun = models[1]
    return found


def turns_of(run: SpooledRun) -> list[int]:
    steps: list[int] = run.signal("gradient/norm")[0].tolist()
    return steps


def test_the_training_is_that_of_a_plain_fit(models: Any, data: Any, options: Any) -> None:
    thinned, _, traces, *_ = models
    plain = made(**options)
    x, y, weights = data
    plain.fit(x, y, sample_weight=weights, verbose=0, **FIT)
    assert traces == Counted.traces, "nothing of the user's was traced once more"
    assert thinned.history.history == plain.history.history
    for a, b in zip(thinned.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    for a, b in zip(thinned.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_other_probes_have_their_turn_now_and_then(run: SpooledRun) -> None:
    if BACKEND == "tensorflow":
        assert 2 * BATCHES / STRIDE <= len(turns_of(run)) < BATCHES
        return
    compared = [1, *range(2, 2 + COMPARED, 2), 2 + COMPARED]
    after = list(range(compared[-1] + STRIDE, BATCHES + 1, STRIDE))
    # The short last batch has a program of its own, and each epoch begins with a turn.
    second = list(range(BATCHES + 1, 2 * BATCHES + 1, STRIDE))
    assert turns_of(run) == sorted({*compared, *after, BATCHES, *second, 2 * BATCHES})


def test_what_is_measured_in_turns_is_what_a_whole_program_measures(models: Any) -> None:
    _, run, _, _, every = models
    turns, names = turns_of(run), {s.name for p in every.packets for s in p.signals}
    assert {"gradient/norm", "labels/max", "outputs/max"} <= names
    for name in names:
        (steps, values), (all_steps, all_values) = run.signal(name), every.signal(name)
        if name.startswith(("time/", "memory/", "weights/moved_outside")):
            continue
        assert steps.tolist() in (turns, all_steps.tolist()), name
        known = dict(zip(all_steps.tolist(), all_values, strict=True))
        np.testing.assert_array_equal(values, [known[s] for s in steps.tolist()], err_msg=name)


def test_what_adds_up_and_how_weights_move_is_of_every_batch(run: SpooledRun, options: Any) -> None:
    every = list(range(1, 2 * BATCHES + 1))
    names = ["batch/size", "loss/batch", "loss/recomputed", "inputs/nonfinite"]
    # A graph takes over what was left out, in a branch.
    names += ["learning_rate/effective"] * (options.get("jit_compile") is not False)
    for name in names:
        assert run.signal(name)[0].tolist() == every, name


def test_says_what_is_left_out_and_why(run: SpooledRun) -> None:
    facts = run.audits("thinned")[-1].facts
    assert "gradient/norm" in facts["signal"].split(", ")
    assert "loss/recomputed" not in facts["signal"]
    assert facts["stride"] == STRIDE
    assert "that is compiled" in facts["reason"]
    assert not run.audits("probe_failed")


def test_nothing_is_reported(run: SpooledRun) -> None:
    assert not run.judge().at_least("warning")


@pytest.mark.usefixtures("soon")
def test_a_loss_that_is_not_finite_ends_the_turns(data: Any, monkeypatch: Any) -> None:
    from trainsanity import readings

    monkeypatch.setattr(readings, "READ_SECONDS", 0.0)
    monkeypatch.setattr("trainsanity.tape.COPY_SECONDS", 0.0)
    x, y, weights = data
    weights = weights.copy()
    poisoned = 60
    weights[(poisoned - 1) * BATCH] = np.nan
    found = turns_of(fit((x, y, weights), made()))
    rest = [step for step in found if step > poisoned]
    # It is read from the tape some steps later.
    assert rest[-STRIDE:] == list(range(2 * BATCHES - STRIDE + 1, 2 * BATCHES + 1))
    assert len(rest) > BATCHES


def plain_weights(data: Any) -> list[Any]:
    plain = made()
    x, y, weights = data
    plain.fit(x, y, sample_weight=weights, verbose=0, **FIT)
    return plain.get_weights()


@pytest.mark.usefixtures("soon")
def test_where_it_cannot_be_made_all_probes_look_on(data: Any, monkeypatch: Any) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("the compiler is out of memory")

    monkeypatch.setattr(Active, "leaving_out", fail)
    model = made()
    run = fit(data, model)
    assert turns_of(run) == list(range(1, 2 * BATCHES + 1))
    (failed,) = run.audits("probe_failed")
    assert failed.facts["probe"] == "short step"
    assert "out of memory" in failed.facts["error"]
    for a, b in zip(model.get_weights(), plain_weights(data), strict=True):
        np.testing.assert_array_equal(a, b)


@on_jax
@pytest.mark.usefixtures("soon")
def test_where_it_refuses_what_it_is_given_the_whole_program_runs(
    data: Any, monkeypatch: Any
) -> None:
    """As where somebody has put a variable of another type in place in the middle of an epoch."""
    make = Active.leaving_out

    def of_another_type(backend: Any, program: Any, model: Any, args: Any, *rest: Any) -> Any:
        state, (x, *others) = args
        traces = Counted.traces
        other = make(backend, program, model, (state, (np.float32(x), *others)), *rest)
        Counted.traces = traces
        return other

    monkeypatch.setattr(Active, "leaving_out", of_another_type)
    model = made()
    run = fit(data, model)
    assert turns_of(run)[2:] == list(range(3, 2 * BATCHES + 1))
    assert [a.facts["probe"] for a in run.audits("probe_failed")] == ["short step"]
    for a, b in zip(model.get_weights(), plain_weights(data), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("soon")
def test_an_interrupt_while_it_is_compiled_costs_no_weights(data: Any, monkeypatch: Any) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Active, "leaving_out", interrupted)
    model = made()
    with pytest.raises(KeyboardInterrupt):
        fit(data, model)
    plain = made()
    x, y, weights = data
    plain.fit(x, y, sample_weight=weights, verbose=0, **{**FIT, "epochs": 1}, steps_per_epoch=1)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@on_jax
def test_debuggers_of_nan_see_the_whole_program(data: Any, soon: None, monkeypatch: Any) -> None:
    import jax

    jax.config.update("jax_debug_nans", True)
    try:
        run = fit(data, made())
    finally:
        jax.config.update("jax_debug_nans", False)
    assert turns_of(run) == list(range(1, 2 * BATCHES + 1))
    assert not run.audits("probe_failed")


class Nudge(keras.callbacks.Callback):
    """Writes to weights after a batch, and reads them after another one."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        bias = self.model.layers[-1].bias
        if self.model.optimizer.iterations > BATCHES:
            return
        if batch == 40:
            bias.assign(bias + 0.25)
        if batch == 50:
            self.model.get_weights()


@on_jax
@pytest.mark.usefixtures("soon")
def test_moves_are_measured_from_where_somebody_has_put_the_weights(data: Any) -> None:
    """Sampled weights are not read before an update, but known from the step before."""
    x, y, weights = data
    model = made()
    model.optimizer.learning_rate.assign(3e-3)
    run = watched_fit(
        model, x, y, sample_weight=weights, callbacks=[Nudge()], **FIT, validation_split=0.1
    )
    steps, moved = run.signal("weights/moved_outside")
    found = dict(zip(steps.tolist(), moved, strict=True))
    assert found.pop(42) == pytest.approx(0.25, rel=1e-5)
    assert set(found.values()) == {0.0}
    _, effective = run.signal("learning_rate/effective")
    np.testing.assert_allclose(effective, 3e-3, rtol=2e-2)
    assert [audit.facts["by"] for audit in run.audits("moved_outside")] == [["Nudge"]]


class Scaled(keras.Model):
    """Its step is given a number of Python beside the arrays."""

    def train_step(self, state: Any, data: Any) -> Any:
        x, y, scale = data
        logs, state = super().train_step(state, (x, y * scale))
        return logs, state


@on_jax
@pytest.mark.usefixtures("soon")
def test_a_batch_may_hold_what_is_no_array() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    model = Scaled(inputs, layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    step = model.make_train_function

    def with_number() -> None:
        step()
        made = model.train_function
        if made is not None:
            model.train_function = lambda state, batches: made(
                state, ((*batch[:2], 2.0) for batch in batches)
            )

    model.make_train_function = with_number
    run = watched_fit(model, x, x[:, :1], batch_size=2, epochs=20)
    assert run.signal("batch/size")[0].tolist() == list(range(1, 41))


def tell_what_is_read(monkeypatch: Any, told: Callable[[Any], None]) -> None:
    """Calls `told` with the new rows of each reading of a tape within an epoch."""
    original = TapeReader.read

    def reading(self: TapeReader, whole: bool) -> Any:
        rows = original(self, whole)
        if len(rows) and not whole:
            told(rows)
        return rows

    monkeypatch.setattr(TapeReader, "read", reading)


@on_jax
def test_a_copy_of_the_tape_is_read_when_its_step_has_run_not_with_the_next_copy(
    data: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("trainsanity.readings.READ_SECONDS", 0.0)
    monkeypatch.setattr("trainsanity.tape.COPY_SECONDS", 1e9)  # a quarter of the ring, then
    monkeypatch.setattr(Active, "TAPE_DEPTH", 256)
    begun, read = [], []

    class Batches(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            begun.append(len(begun) + 1)

    tell_what_is_read(monkeypatch, lambda rows: read.append((begun[-1], int(rows.steps[-1]))))
    x, y, weights = data
    options: Any = {"audit_budget": 0}
    callbacks = [Batches()]
    watched_fit(made(), x, y, sample_weight=weights, **FIT, callbacks=callbacks, options=options)
    assert read
    assert all(batch - step < Active.TAPE_DEPTH // 8 for batch, step in read), read


@on_jax
def test_a_copy_of_the_tape_does_not_grow_old_until_it_is_time_to_read(
    data: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("trainsanity.readings.READ_SECONDS", 1e9)
    monkeypatch.setattr("trainsanity.tape.COPY_SECONDS", 0.0)
    read: list[int] = []
    tell_what_is_read(monkeypatch, lambda rows: read.append(len(rows)))
    x, y, weights = data
    options: Any = {"audit_budget": 0}
    watched_fit(made(), x, y, sample_weight=weights, batch_size=1, options=options)
    assert read[0] < 64, read


def test_a_tape_is_read_for_time_or_after_256_steps_and_not_for_fewer(
    data: Any, monkeypatch: Any
) -> None:
    """A step of 5 ms makes 200 of them a second; each reading also sends a packet."""
    monkeypatch.setattr("trainsanity.readings.READ_SECONDS", 1e9)
    monkeypatch.setattr("trainsanity.tape.COPY_SECONDS", 1e9)
    read: list[int] = []
    tell_what_is_read(monkeypatch, lambda rows: read.append(len(rows)))
    x, y, weights = data
    options: Any = {"audit_budget": 0}
    watched_fit(made(), x, y, sample_weight=weights, batch_size=1, options=options)
    assert read[0] >= 256, read


def test_of_nan_in_a_batch_the_batch_is_named_although_it_had_no_turn(soon: None) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")
    x[(POISON - 1) * BATCH] = np.nan
    run = watched_fit(
        model, x, x[:, :1].copy(), batch_size=BATCH, shuffle=False, options={"audit_budget": 0}
    )
    assert POISON not in turns_of(run)
    (found,) = run.judge().of("nonfinite-propagation")
    assert found.title.startswith(f"NaN or infinity in the inputs since step {POISON:,}")


class Anew(keras.callbacks.Callback):
    """Compiles the model anew after an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.model.compile(keras.optimizers.Adam(0.5), "mae", jit_compile=True)
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.make_train_function(force=True)


@pytest.mark.usefixtures("soon")
def test_a_model_that_is_compiled_anew_gets_programs_of_its_own() -> None:
    x = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")

    def trained(fit: Any) -> list[Any]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        model.compile("adam", "mse", jit_compile=True)
        fit(model, x, x[:, :1], batch_size=BATCH, epochs=2, callbacks=[Anew()])
        found: list[Any] = model.get_weights()
        return found

    watched = trained(watched_fit)
    plain = trained(lambda model, *args, **options: model.fit(*args, verbose=0, **options))
    for a, b in zip(watched, plain, strict=True):
        np.testing.assert_array_equal(a, b)


class Noisy(layers.Layer):
    """Draws from a sequence that goes on in the function that TensorFlow has compiled."""

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return x + tf.random.normal(tf.shape(x), stddev=0.1, seed=5)


@on_tensorflow
@pytest.mark.usefixtures("soon")
def test_a_function_that_holds_a_state_stays_the_only_one() -> None:
    x = np.random.default_rng(0).normal(size=(800, 3)).astype("float32")

    def model() -> keras.Model:
        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.Input((3,)), Noisy(), layers.Dense(1)])
        made.compile("sgd", "mse")
        return made

    watched, plain = model(), model()
    watched_fit(watched, x, x[:, :1], batch_size=BATCH, options={"audit_budget": 0})
    plain.fit(x, x[:, :1], batch_size=BATCH, verbose=0)
    for a, b in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@on_tensorflow
@pytest.mark.usefixtures("soon")
def test_shorter_functions_do_not_outlive_the_fit(options: Any) -> None:
    from tensorflow.python.eager.polymorphic_function.atomic_function import RUNTIME_FUNCTION_REFS

    def short() -> set[Any]:
        return {key for key in RUNTIME_FUNCTION_REFS if b"trainsanity_left_out" in key[1]}

    x = np.ones((400, 3), "float32")
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    made: set[Any] = set()
    before = short()
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *args: made.update(short() - before))
    watched_fit(model, x, x[:, :1], batch_size=BATCH, callbacks=[look])
    gc.collect()
    assert made
    assert not made & short()


@on_tensorflow
def test_a_graph_with_few_weights_has_one_program(soon: None, monkeypatch: Any) -> None:
    def fail(*args: Any) -> Any:
        raise AssertionError("its branch costs less")

    monkeypatch.setattr(programs, "MANY_WEIGHTS", 5)
    monkeypatch.setattr(Active, "leaving_out", fail)
    for inputs, makes in ((3, 0), (4, 1)):
        x = np.ones((400, inputs), "float32")
        model = keras.Sequential([keras.Input((inputs,)), layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)
        run = watched_fit(model, x, x[:, :1], batch_size=BATCH)
        assert len(run.audits("probe_failed")) == makes


class Asserted(layers.Layer):
    """Refuses large numbers as the compiled step runs."""

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 5.0)]):
            return tf.identity(x)


@on_tensorflow
@pytest.mark.usefixtures("soon")
def test_an_error_in_the_step_names_the_line_of_the_user() -> None:
    import tensorflow as tf

    x = np.ones((800, 3), "float32")
    x[700] = 9.0
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), Asserted(), layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        watched_fit(model, x, x[:, :1], batch_size=BATCH, shuffle=False)
    assert __file__ in str(raised.value)


class Eagerly(keras.callbacks.Callback):
    """Has all functions run operation by operation, from one batch to another."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        import tensorflow as tf

        if batch in (20, 30):
            tf.config.run_functions_eagerly(batch == 20)


class Called(layers.Layer):
    """Counts how often its Python code runs in training."""

    calls = 0

    def call(self, x: Any, training: bool = False) -> Any:
        Called.calls += bool(training)
        return x


@pytest.fixture
def compiled_again() -> Iterator[None]:
    """Whatever a test does, functions are compiled in the next one."""
    yield
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)


@on_tensorflow
@pytest.mark.usefixtures("compiled_again")
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
def test_steps_go_past_tf_function_unless_functions_are_to_run_eagerly(monkeypatch: Any) -> None:
    from tensorflow.python.eager.polymorphic_function import polymorphic_function

    x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    through, call = [], polymorphic_function.Function.__call__

    def noted(function: Any, *args: Any, **kwargs: Any) -> Any:
        through.append(function)
        return call(function, *args, **kwargs)

    def trained(fit: Any) -> tuple[Any, int]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), Called(), layers.Dense(1)])
        model.compile("adam", "mse")
        Called.calls = 0
        fit(model, x, x[:, :1], batch_size=BATCH, callbacks=[Eagerly()])
        return model.get_weights(), Called.calls

    plain, in_plain = trained(lambda model, *args, **kw: model.fit(*args, verbose=0, **kw))
    monkeypatch.setattr(polymorphic_function.Function, "__call__", noted)
    options = {"audit_budget": 0}
    watched, in_watched = trained(lambda *args, **kw: watched_fit(*args, options=options, **kw))
    assert in_watched == in_plain > 10
    assert len(through) == 2 + 2 * 10, "the first steps, and those that run eagerly"
    for a, b in zip(watched, plain, strict=True):
        np.testing.assert_array_equal(a, b)
