"""The learning rate as declared, as applied and as the weights really move, for every optimizer
of Keras and for every way to change the rate.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import optimizers
from keras.optimizers import schedules
from watched import watched_fit

from trainsanity import shadow
from trainsanity.shadow import ELEMENTS
from trainsanity.spooled import SpooledRun

BACKEND = keras.backend.backend()
RATE = 0.01
BATCHES = 12
HALVED_AFTER = 6  # updates

Optimizer = keras.optimizers.Optimizer


def net(optimizer: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(4, activation="tanh", name="hidden")
    model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(2, name="outer")])
    model.compile(optimizer, "mse")
    return model


def fit(model: keras.Model, *, epochs: int = 1, **options: Any) -> SpooledRun:
    """An epoch of 12 batches, or several of 4."""
    x = np.random.default_rng(0).normal(size=(48 if epochs == 1 else 16, 3)).astype("float32")
    y = x @ np.ones((3, 2), "float32")
    # Audits say nothing about optimizers, and take longer than these fits.
    options.setdefault("options", {})["audit_budget"] = 0.0
    return watched_fit(model, x, y, batch_size=4, epochs=epochs, shuffle=False, **options)


def rates(run: SpooledRun, witness: str, name: str = "") -> np.ndarray[Any, Any]:
    found = run.signal(f"learning_rate{':' + name if name else ''}/{witness}")[1]
    assert len(found), f"not measured; known are {sorted(run.names)}"
    return found


def not_testable(run: SpooledRun) -> dict[str, str]:
    reasons: dict[str, str] = run.audits("columns")[-1].facts["not_testable"]
    return reasons


def assert_healthy(run: SpooledRun) -> None:
    assert [finding.title for _, finding in run.judge().at_least("warning")] == []
    assert run.audits("probe_failed") == []


def halved(optimizer: Any, after: int) -> Any:
    """The optimizer with a fault inside: after some updates each one uses half its rate, and
    nothing that can be read says so.
    """
    worker = getattr(optimizer, "inner_optimizer", optimizer)
    whole = worker._backend_update_step

    def update(gradients: Any, variables: Any, learning_rate: Any) -> Any:
        share = keras.ops.where(worker.iterations >= after, 0.5, 1.0)
        return whole(gradients, variables, keras.ops.cast(learning_rate, "float32") * share)

    worker._backend_update_step = update
    return optimizer


# What the optimizer is made of, and the update after which its rate is halved: from the first one
# on where the slots carry the rate of earlier updates on; None where a smaller rate moves weights
# in another direction, so that no share of the right one is the truth.
ELEMENT_WISE: dict[str, tuple[type[Optimizer], dict[str, Any], int | None]] = {
    "SGD": (optimizers.SGD, {}, HALVED_AFTER),
    "SGD, momentum": (optimizers.SGD, {"momentum": 0.9}, 0),
    "SGD, Nesterov": (optimizers.SGD, {"momentum": 0.9, "nesterov": True}, 0),
    "SGD, weight decay": (optimizers.SGD, {"weight_decay": 0.3}, None),
    "Adam": (optimizers.Adam, {}, HALVED_AFTER),
    "Adam, AMSGrad": (optimizers.Adam, {"amsgrad": True}, HALVED_AFTER),
    "AdamW": (optimizers.AdamW, {}, HALVED_AFTER),
    "AdamW, much decay": (optimizers.AdamW, {"weight_decay": 0.5}, None),
    "Adamax": (optimizers.Adamax, {}, HALVED_AFTER),
    "Adagrad": (optimizers.Adagrad, {}, HALVED_AFTER),
    "Adadelta": (optimizers.Adadelta, {}, HALVED_AFTER),
    "RMSprop": (optimizers.RMSprop, {}, HALVED_AFTER),
    "RMSprop, centered": (optimizers.RMSprop, {"centered": True}, HALVED_AFTER),
    "RMSprop, momentum": (optimizers.RMSprop, {"momentum": 0.9}, 0),
    "RMSprop, both": (optimizers.RMSprop, {"momentum": 0.9, "centered": True}, 0),
    "Nadam": (optimizers.Nadam, {}, HALVED_AFTER),
    "Ftrl": (optimizers.Ftrl, {}, None),
    "Ftrl, regularized": (
        optimizers.Ftrl,
        {
            "l1_regularization_strength": 0.001,
            "l2_regularization_strength": 0.1,
            "l2_shrinkage_regularization_strength": 0.01,
            "beta": 0.5,
        },
        None,
    ),
    "Lion": (optimizers.Lion, {}, HALVED_AFTER),
    "clipvalue": (optimizers.Adam, {"clipvalue": 0.01}, HALVED_AFTER),
    "clipnorm": (optimizers.SGD, {"clipnorm": 0.01}, HALVED_AFTER),
    "global_clipnorm": (optimizers.Adamax, {"global_clipnorm": 0.01}, HALVED_AFTER),
}
NOT_ELEMENT_WISE = (
    optimizers.Adafactor,
    optimizers.Lamb,
    optimizers.Muon,
    optimizers.ScheduleFreeAdamW,
)
# Each has tests of its own below.
WRAPPERS = (optimizers.LossScaleOptimizer, optimizers.MultiOptimizer)


def test_no_optimizer_of_keras_is_forgotten() -> None:
    found = {
        value
        for value in vars(optimizers).values()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }
    assert found == {kind for kind, _, _ in ELEMENT_WISE.values()} | {*NOT_ELEMENT_WISE, *WRAPPERS}


@pytest.mark.parametrize(
    "case", ELEMENT_WISE if BACKEND == "tensorflow" else ["SGD, momentum", "AdamW"]
)
def test_follows_every_element_wise_optimizer_to_two_percent(case: str) -> None:
    kind, options, after = ELEMENT_WISE[case]
    optimizer = kind(RATE, **options)
    run = fit(net(optimizer if after is None else halved(optimizer, after)))
    whole = BATCHES if after is None else after
    truth = RATE * np.where(np.arange(BATCHES) < whole, 1.0, 0.5)
    np.testing.assert_allclose(rates(run, "effective"), truth, rtol=0.02)
    np.testing.assert_allclose(rates(run, "applied"), np.full(BATCHES, RATE), rtol=1e-6)
    np.testing.assert_allclose(rates(run, "declared"), [RATE], rtol=1e-6)
    found = run.judge().of("lr-effective-mismatch")
    assert bool(found) == (after == 0)  # the rule wants ten steps in a row


@pytest.mark.parametrize("shape", [(), (1,), (60,), (16, 32), (1000, 2), (2, 17), (3, 3, 8, 16)])
def test_looks_at_elements_in_every_part_of_a_weight(shape: tuple[int, ...]) -> None:
    (sampled,) = shadow.choose([keras.Variable(np.zeros(shape, "float32"))])
    assert min(ELEMENTS // 2, math.prod(shape)) <= len(sampled) <= ELEMENTS
    for size, places in zip(shape, sampled.coordinates.T, strict=True):
        assert len(set(places)) >= min(size, ELEMENTS // 2)
    flat = np.ravel_multi_index(tuple(sampled.coordinates.T), shape) if shape else np.zeros(1)
    assert len(set(np.diff(flat))) <= 1  # what XLA reads without a gather


@pytest.mark.parametrize("kind", NOT_ELEMENT_WISE if BACKEND == "tensorflow" else [optimizers.Lamb])
def test_says_which_optimizers_it_cannot_follow(kind: type[Optimizer]) -> None:
    run = fit(net(kind(RATE)))
    assert "learning_rate/effective" not in run.names
    reason = not_testable(run)["learning_rate/effective"]
    assert reason == f"{kind.__name__} is no optimizer of Keras that works element by element"
    np.testing.assert_allclose(rates(run, "applied"), np.full(BATCHES, RATE), rtol=1e-6)
    assert_healthy(run)


class Doubling(optimizers.SGD):
    """An optimizer of the user's, whose update nobody else can know."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(2.0 * gradient, variable, learning_rate)


def test_does_not_guess_at_an_optimizer_of_the_users() -> None:
    run = fit(net(Doubling(RATE)))
    assert "learning_rate/effective" not in run.names
    assert "Doubling" in not_testable(run)["learning_rate/effective"]
    assert_healthy(run)


@pytest.mark.parametrize("after", [None, 0])
def test_follows_the_optimizer_inside_loss_scaling(after: int | None) -> None:
    inner = optimizers.SGD(RATE, momentum=0.9)
    optimizer = optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    run = fit(net(optimizer if after is None else halved(optimizer, after)))
    share = 1.0 if after is None else 0.5
    np.testing.assert_allclose(rates(run, "effective"), np.full(BATCHES, RATE * share), rtol=0.02)
    np.testing.assert_allclose(rates(run, "applied"), np.full(BATCHES, RATE), rtol=1e-6)
    assert bool(run.judge().of("lr-effective-mismatch")) == (after == 0)


def test_follows_each_optimizer_of_several_that_share_the_weights() -> None:
    kernels = optimizers.Adam(RATE, name="kernels")
    biases = halved(optimizers.SGD(2 * RATE, name="biases"), 0)
    run = fit(
        net(optimizers.MultiOptimizer(optimizers.OptimizerMap(biases, {".*/kernel": kernels})))
    )
    every = np.full(BATCHES, RATE)
    np.testing.assert_allclose(rates(run, "applied", "kernels"), every, rtol=1e-6)
    np.testing.assert_allclose(rates(run, "effective", "kernels"), every, rtol=0.02)
    np.testing.assert_allclose(rates(run, "applied", "biases"), 2 * every, rtol=1e-6)
    np.testing.assert_allclose(rates(run, "effective", "biases"), every, rtol=0.02)


# Updates that are made of several batches, or after which weights are overwritten


def test_knows_the_rate_only_where_accumulated_gradients_are_applied() -> None:
    optimizer = halved(optimizers.Adam(RATE, gradient_accumulation_steps=3), 2)
    effective = rates(fit(net(optimizer)), "effective")
    is_update = np.arange(1, BATCHES + 1) % 3 == 0
    np.testing.assert_array_equal(np.isnan(effective), ~is_update)
    np.testing.assert_allclose(effective[is_update], RATE * np.array([1, 1, 0.5, 0.5]), rtol=0.02)


@pytest.mark.parametrize("every", [4] if BACKEND == "jax" else [None, 4])
def test_does_not_take_a_moving_average_for_an_update(every: int | None) -> None:
    optimizer = optimizers.Adam(RATE, use_ema=True, ema_overwrite_frequency=every)
    run = fit(net(halved(optimizer, HALVED_AFTER)))
    effective = rates(run, "effective")
    is_overwritten = np.arange(1, BATCHES + 1) % (every or BATCHES + 1) == 0
    np.testing.assert_array_equal(np.isnan(effective), is_overwritten)
    truth = RATE * np.where(np.arange(BATCHES) < HALVED_AFTER, 1.0, 0.5)
    np.testing.assert_allclose(effective[~is_overwritten], truth[~is_overwritten], rtol=0.02)
    assert_healthy(run)


def test_knows_which_weights_do_not_decay() -> None:
    optimizer = optimizers.SGD(RATE, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "outer"])
    run = fit(net(optimizer))
    np.testing.assert_allclose(rates(run, "effective"), np.full(BATCHES, RATE), rtol=0.02)
    assert_healthy(run)


# Rates that change: declared at the begin of each epoch, applied at every step


def cosine(step: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two steps of warm-up, then ten down to a tenth."""
    fallen = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 2) / 10))
    return RATE * np.where(step < 2, step / 2, fallen)


SCHEDULES: dict[str, tuple[Callable[[], Any], Callable[[np.ndarray[Any, Any]], Any]]] = {
    "exponential": (
        lambda: schedules.ExponentialDecay(RATE, 3, 0.5),
        lambda step: RATE * 0.5 ** (step / 3),
    ),
    "cosine with warm-up": (
        lambda: schedules.CosineDecay(0.0, 10, alpha=0.1, warmup_target=RATE, warmup_steps=2),
        cosine,
    ),
    "piecewise": (
        lambda: schedules.PiecewiseConstantDecay([2, 6], [RATE, RATE / 2, RATE / 8]),
        lambda step: RATE / np.where(step <= 2, 1, np.where(step <= 6, 2, 8)),
    ),
}


def assert_agree(run: SpooledRun, truth: np.ndarray[Any, Any], batches: int = 4) -> None:
    """Declared at the begin of each epoch, applied and effective at every step are the truth."""
    np.testing.assert_allclose(rates(run, "applied"), truth, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(rates(run, "declared"), truth[::batches], rtol=1e-5, atol=1e-9)
    effective = rates(run, "effective")
    moves = truth > 0
    np.testing.assert_allclose(effective[moves], truth[moves], rtol=0.02)
    assert np.isnan(effective[~moves]).all()
    assert_healthy(run)


@pytest.mark.parametrize("name", SCHEDULES if BACKEND == "tensorflow" else ["exponential"])
def test_follows_a_schedule_step_by_step(name: str) -> None:
    schedule, truth = SCHEDULES[name]
    run = fit(net(optimizers.Adam(schedule())), epochs=3)
    assert_agree(run, np.asarray(truth(np.arange(BATCHES)), np.float64))


def test_follows_a_callable_that_always_says_the_same() -> None:
    assert_agree(fit(net(optimizers.SGD(lambda: RATE)), epochs=3), np.full(BATCHES, RATE))


def test_follows_a_scheduler_that_assigns_each_epoch() -> None:
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, _: RATE / (1 + epoch))
    run = fit(net(optimizers.RMSprop(0.5)), epochs=3, callbacks=[scheduler])
    assert_agree(run, np.repeat(RATE / np.array([1, 2, 3]), 4))


def test_follows_reductions_on_a_plateau() -> None:
    plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=1e6, min_lr=0)
    run = fit(net(optimizers.SGD(RATE)), epochs=4, callbacks=[plateau])
    assert_agree(run, np.repeat(RATE / np.array([1, 1, 2, 4]), 4))


class FromSecondEpochOn(keras.callbacks.Callback):
    """Does something to the optimizer before each epoch but the first."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__()
        self._act = act

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch:
            self._act(self.model)


def test_a_callable_is_asked_once_where_the_step_is_compiled() -> None:
    now = {"rate": RATE}
    late = FromSecondEpochOn(lambda _: now.update(rate=RATE / 10))
    run = fit(net(optimizers.SGD(lambda: now["rate"])), epochs=4, callbacks=[late])
    np.testing.assert_allclose(rates(run, "declared"), RATE * np.array([1, 0.1, 0.1, 0.1]))
    if BACKEND == "torch":  # nothing is compiled there: the callable is asked at every step
        assert_agree(run, np.repeat(rates(run, "declared"), 4))
        return
    for witness in ("applied", "effective"):
        np.testing.assert_allclose(rates(run, witness), np.full(16, RATE), rtol=0.02)
    (finding, *_) = run.judge().of("lr-effective-mismatch")
    assert [w.name for w in finding.witnesses] == [
        "learning_rate/declared",
        "learning_rate/applied",
    ]
    assert [w.value for w in finding.witnesses] == pytest.approx([RATE / 10, RATE])


def swap_for_a_number(model: keras.Model) -> None:
    object.__setattr__(model.optimizer, "_learning_rate", RATE / 10)


def swap_for_a_schedule(model: keras.Model) -> None:
    model.optimizer.learning_rate = schedules.PiecewiseConstantDecay([1], [RATE, RATE / 10])


def swap_the_optimizer(model: keras.Model) -> None:
    model.optimizer = optimizers.SGD(RATE / 10)


SWAPS: dict[str, tuple[Callable[[keras.Model], None], ...]] = {
    "tensorflow": (swap_for_a_number, swap_for_a_schedule, swap_the_optimizer),
    # On JAX Keras itself fails where the optimizer's state changes between epochs.
    "jax": (swap_for_a_number,),
    "torch": (swap_for_a_schedule,),
}


@pytest.mark.parametrize("swap", SWAPS[BACKEND])
def test_a_compiled_step_keeps_the_rate_that_was_swapped(
    swap: Callable[[keras.Model], None],
) -> None:
    run = fit(net(optimizers.SGD(RATE)), epochs=4, callbacks=[FromSecondEpochOn(swap)])
    np.testing.assert_allclose(rates(run, "declared"), RATE * np.array([1, 0.1, 0.1, 0.1]))
    if BACKEND == "torch":
        assert_agree(run, np.repeat(rates(run, "declared"), 4))
        return
    for witness in ("applied", "effective"):
        np.testing.assert_allclose(rates(run, witness), np.full(16, RATE), rtol=0.02)
    (finding, *_) = run.judge().of("lr-effective-mismatch")
    assert finding.witnesses[0].value == pytest.approx(RATE / 10)


def test_a_rate_under_another_name_is_ignored_by_keras() -> None:
    optimizer = optimizers.SGD(RATE)
    optimizer.lr = 10 * RATE
    run = fit(net(optimizer))
    np.testing.assert_allclose(rates(run, "effective"), np.full(BATCHES, RATE), rtol=0.02)
    (finding,) = run.judge().of("lr-effective-mismatch")
    assert finding.subject == "optimizer.lr"
