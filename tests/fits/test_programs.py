"""Evidence where a step is one pure program, as on JAX: after a while a second program leaves out
what need not be measured at every step.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.watched import watched_fit

from trainsanity import pace, programs
from trainsanity.backends.jax import Jax
from trainsanity.spooled import SpooledRun

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="elsewhere a step can leave operations out by itself"
)

ROWS, BATCH, EPOCHS = 490, 4, 2  # the last batch of each epoch is a short one
BATCHES = 123
STRIDE = 20
COMPARED = 2 * programs.COMPARED
POISON = 90  # a step without a turn, whose batch holds NaN


class Counted(layers.Layer):
    """Code of the user's that runs while a step is traced, and leaves a number in it."""

    traces = 0

    def call(self, x: Any, training: bool = False) -> Any:
        Counted.traces += bool(training)
        return x * (1.0 + 1e-3 * Counted.traces)


def made(**options: Any) -> keras.Model:
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
    monkeypatch.setattr(pace, "FIRST", 0)
    monkeypatch.setattr(pace, "affordable", lambda *_: STRIDE)


@pytest.fixture(scope="module", params=[1, 4], ids=lambda n: f"{n} steps at once")
def steps_at_once(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def models(data: Any, steps_at_once: int) -> tuple[keras.Model, SpooledRun, int, keras.Model, Any]:
    """A model and its run with turns, how often the user's code was traced, and another pair whose
    probes all look at every step.
    """
    options = {"steps_per_execution": steps_at_once}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "WORTH", 0.0)
        patch.setattr(pace, "FIRST", 0)
        patch.setattr(pace, "affordable", lambda *_: STRIDE)
        thinned = made(**options)
        run = fit(data, thinned)
        traces = Counted.traces
    every = made(**options)
    return thinned, run, traces, every, fit(data, every)


@pytest.fixture(scope="module")
def run(models: Any) -> SpooledRun:
    found: SpooledRun = models[1]
    return found


def turns_of(run: SpooledRun) -> list[int]:
    steps: list[int] = run.signal("gradient/norm")[0].tolist()
    return steps


def test_the_training_is_that_of_a_plain_fit(models: Any, data: Any, steps_at_once: int) -> None:
    thinned, _, traces, *_ = models
    plain = made(steps_per_execution=steps_at_once)
    x, y, weights = data
    plain.fit(x, y, sample_weight=weights, verbose=0, **FIT)
    assert traces == Counted.traces, "nothing of the user's was traced once more"
    assert thinned.history.history == plain.history.history
    for a, b in zip(thinned.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    for a, b in zip(thinned.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_other_probes_have_their_turn_now_and_then(run: SpooledRun) -> None:
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
        if name.startswith(("time/", "memory/")):
            continue
        assert steps.tolist() in (turns, all_steps.tolist()), name
        known = dict(zip(all_steps.tolist(), all_values, strict=True))
        np.testing.assert_array_equal(values, [known[s] for s in steps.tolist()], err_msg=name)


def test_what_adds_up_and_how_weights_move_is_of_every_batch(run: SpooledRun) -> None:
    every = list(range(1, 2 * BATCHES + 1))
    for name in ("batch/size", "loss/batch", "loss/recomputed", "learning_rate/effective"):
        assert run.signal(name)[0].tolist() == every, name


def test_says_what_is_left_out_and_why(run: SpooledRun) -> None:
    facts = run.audits("thinned")[-1].facts
    assert "gradient/norm" in facts["signal"].split(", ")
    assert "learning_rate/effective" not in facts["signal"]
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

    monkeypatch.setattr(Jax, "with_constant", fail)
    model = made()
    run = fit(data, model)
    assert turns_of(run) == list(range(1, 2 * BATCHES + 1))
    (failed,) = run.audits("probe_failed")
    assert failed.facts["probe"] == "short step"
    assert "out of memory" in failed.facts["error"]
    for a, b in zip(model.get_weights(), plain_weights(data), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("soon")
def test_where_it_refuses_what_it_is_given_the_whole_program_runs(
    data: Any, monkeypatch: Any
) -> None:
    """As where somebody has put a variable of another type in place in the middle of an epoch."""
    make = Jax.with_constant

    def of_another_type(backend: Any, program: Any, model: Any, args: Any, *rest: Any) -> Any:
        state, (x, *others) = args
        traces = Counted.traces
        other = make(backend, program, model, (state, (np.float32(x), *others)), *rest)
        Counted.traces = traces
        return other

    monkeypatch.setattr(Jax, "with_constant", of_another_type)
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

    monkeypatch.setattr(Jax, "with_constant", interrupted)
    model = made()
    with pytest.raises(KeyboardInterrupt):
        fit(data, model)
    plain = made()
    x, y, weights = (part[:BATCH] for part in data)
    plain.fit(x, y, sample_weight=weights, verbose=0, **{**FIT, "epochs": 1})
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


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
