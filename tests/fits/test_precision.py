"""Half precision, quantized layers and LoRA: what is measured is true, or is said not to be
testable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from watched import offline_callback, run_of, watched_fit

from trainsanity.spooled import SpooledRun

BACKEND = keras.backend.backend()
RATE = 0.01
ROWS, BATCH = 48, 4


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    """The global policy, for the whole fit: reloading a model needs it too."""
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype("float32")
    return x, x @ np.ones((3, 2), "float32") + 2


def net(*, compiled: bool = True) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    hidden = layers.Dense(8, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="outer", dtype="float32")(hidden))
    if compiled:
        model.compile(optimizers.SGD(RATE, momentum=0.9), "mse", metrics=["mae"])
    return model


def values(run: SpooledRun, name: str) -> np.ndarray[Any, Any]:
    found = run.signal(name)[1]
    assert len(found), f"{name} was not measured; known are {sorted(run.names)}"
    return found


def not_testable(run: SpooledRun, audit: str) -> str:
    return str(run.audits(audit)[-1].facts["not_testable"])


def assert_healthy(run: SpooledRun) -> None:
    assert [finding.title for _, finding in run.judge().at_least("warning")] == []
    assert run.audits("probe_failed") == []


def first_loss_and_gradient(model: keras.Model) -> tuple[float, float]:
    """Mean squared error and gradient norm of the first batch, in float64."""
    weights = [np.asarray(keras.ops.convert_to_numpy(w), np.float64) for w in model.weights]
    kernel, bias, outer, outer_bias = weights
    x, y = (array[:BATCH].astype(np.float64) for array in data())
    hidden = np.tanh(x @ kernel + bias)
    residual = hidden @ outer + outer_bias - y
    slope = 2 * residual / residual.size
    inner = (slope @ outer.T) * (1 - hidden**2)
    gradients = [x.T @ inner, inner.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]
    return float(np.mean(residual**2)), float(np.sqrt(sum(np.sum(g**2) for g in gradients)))


# On JAX each compiles for long.
POLICIES = ["mixed_float16"] if BACKEND == "jax" else ["mixed_float16", "mixed_bfloat16"]


@pytest.mark.parametrize("policy", POLICIES, indirect=True)
def test_measures_half_precision_as_it_is(policy: str) -> None:
    model = net()
    is_scaled = isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    if is_scaled:  # so that no overflow hides the first gradient
        model.optimizer.initial_scale = 64.0
    loss, norm = first_loss_and_gradient(model)
    run = watched_fit(model, *data(), batch_size=BATCH, shuffle=False)
    assert values(run, "loss/batch")[0] == pytest.approx(loss, rel=0.02)
    assert values(run, "loss/differentiated")[0] == pytest.approx(loss, rel=0.02)
    assert values(run, "gradient/norm")[0] == pytest.approx(norm, rel=0.02)
    np.testing.assert_allclose(
        values(run, "loss/recomputed"), values(run, "loss/reported"), rtol=1e-5
    )
    every = np.full(ROWS // BATCH, RATE)
    np.testing.assert_allclose(values(run, "learning_rate/applied"), every, rtol=1e-6)
    np.testing.assert_allclose(values(run, "learning_rate/effective"), every, rtol=0.02)
    assert_healthy(run)


@pytest.fixture
def floatx(request: pytest.FixtureRequest) -> Iterator[str]:
    """What weights, losses and metrics are in, and layers too."""
    policy = keras.config.dtype_policy()
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"], indirect=True)
def test_allows_losses_and_weights_in_half_precision_their_rounding(floatx: str) -> None:
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(160, 8))
    y = (x @ rng.normal(size=(8, 3))).argmax(axis=1)
    hidden = layers.Dense(16, activation="tanh", kernel_regularizer="l2")
    model = keras.Sequential([hidden, layers.BatchNormalization(), layers.Dense(3, "softmax")])
    model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    weights = rng.uniform(0.5, 2.0, size=160)
    run = watched_fit(
        model, x, y, sample_weight=weights, batch_size=16, epochs=4, validation_split=0.2
    )
    assert run.audits("columns")[-1].facts["outputs"][0]["loss_dtypes"] == [floatx]
    assert_healthy(run)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_knows_no_rate_where_loss_scaling_skips_an_update(policy: str) -> None:
    model = net()
    model.optimizer.initial_scale = 65536.0  # float16 ends at 65504
    run = watched_fit(model, *data(), batch_size=BATCH, shuffle=False)
    effective, broken = (
        values(run, name) for name in ("learning_rate/effective", "gradient/nonfinite")
    )
    assert 0 < np.count_nonzero(broken) < ROWS // BATCH
    np.testing.assert_array_equal(np.isnan(effective), broken > 0)
    np.testing.assert_allclose(effective[broken == 0], RATE, rtol=0.02)
    assert run.audits("epoch")[-1].facts["loss_scale_skips"] == np.count_nonzero(broken)
    assert_healthy(run)


def changed(kind: str) -> keras.Model:
    """The model after LoRA, quantization, or both, compiled again as Keras demands."""
    model = net(compiled=False)
    hidden = model.get_layer("hidden")
    if kind != "LoRA":
        model.quantize({"int8": "int8", "float8": "float8", "int8 and LoRA": "int8"}[kind])
    if "LoRA" in kind:
        hidden.enable_lora(2)
    model.compile(optimizers.SGD(RATE, momentum=0.9), "mse", metrics=["mae"])
    return model


KINDS = ["LoRA", "int8", "int8 and LoRA", "float8"] if BACKEND == "tensorflow" else ["LoRA"]


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
@pytest.mark.parametrize("kind", KINDS)
def test_is_right_or_silent_about_quantized_layers_and_lora(kind: str) -> None:
    model = changed(kind)
    run = watched_fit(model, *data(), batch_size=BATCH, shuffle=False)
    np.testing.assert_allclose(
        values(run, "loss/recomputed"), values(run, "loss/reported"), rtol=1e-5
    )
    if kind == "float8":
        reasons = run.audits("columns")[-1].facts["not_testable"]
        expected = "some variables are overwritten by their gradients"
        assert reasons["learning_rate/effective"] == expected
        assert "learning_rate/effective" not in run.names
    else:
        effective = values(run, "learning_rate/effective")
        np.testing.assert_allclose(effective, np.full(ROWS // BATCH, RATE), rtol=0.02)
    if kind == "int8 and LoRA":
        assert "merges LoRA into quantized weights" in not_testable(run, "roundtrip")
    else:
        assert "outputs" in run.audits("roundtrip")[-1].facts
    rows = {v["path"]: v for v in run.audits("weights")[-1].facts["variables"]}
    kernel = rows["hidden/kernel"]
    assert bool(kernel["trainable"]) == (kind == "float8")
    assert (kernel["moved"] > 0) == (kind == "float8")
    assert all(layer["ran"] for layer in run.audits("structure")[-1].facts["layers"][1:])
    assert_healthy(run)


@pytest.mark.parametrize("kind", ["float32", "int8"] if BACKEND == "tensorflow" else ["float32"])
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
def test_is_quiet_about_the_evaluation_of_a_model_that_was_never_trained(
    kind: str, tmp_path: Path
) -> None:
    model = net() if kind == "float32" else changed(kind)
    callback = offline_callback(tmp_path)
    shown = model.evaluate(
        *data(), batch_size=BATCH, verbose=0, callbacks=[callback], return_dict=True
    )
    run = run_of(callback)
    assert values(run, "loss/recomputed")[-1] == pytest.approx(shown["loss"], rel=1e-5)
    assert all(layer["ran"] for layer in run.audits("structure")[-1].facts["layers"][1:])
    slots = run.audits("roundtrip")[-1].facts["optimizer_slots"]
    assert slots is None or slots["before"] == slots["after"]
    assert_healthy(run)


@pytest.mark.parametrize("policy", ["float64"], indirect=True)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64:UserWarning")
def test_says_once_where_64_bits_are_declared_and_not_used(policy: str) -> None:
    """JAX has to be told so before it makes its first array; on torch Keras multiplies in 32."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(2)])
    model.compile("sgd", "mse")
    said = watched_fit(model, *data(), batch_size=BATCH).judge().at_least("warning")
    expected = [("dtype-policy-mismatch", "64 bits")] if BACKEND != "tensorflow" else []
    assert [(rule.id, finding.subject) for rule, finding in said] == expected
