"""Audits of real models: a faulty one, and a healthy one that looks much like it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from watched import let_earlier_runs_end, watched_fit

import trainsanity
from trainsanity import Expect
from trainsanity.spooled import SpooledRun

RNG = np.random.default_rng(7)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = RNG.normal(size=(64, 1)).astype("float32")
IDS = RNG.integers(1, 20, size=(64, 6))
IDS[:, 4:] = 0


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(3)


def fitted(model: keras.Model, x: Any = X, y: Any = Y, **kwargs: Any) -> SpooledRun:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of some of the faults itself
        run = watched_fit(model, x, y, **{"epochs": 3, "batch_size": 16, **kwargs})
    failed = [a.facts["traceback"] for a in run.audits("probe_failed")]
    assert not failed, failed[0]
    return run


def compiled(inputs: Any, outputs: Any, **options: Any) -> keras.Model:
    model = keras.Model(inputs, outputs)
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    return model


def slugs(run: SpooledRun) -> set[str]:
    return {rule.id for rule, _ in run.judge().findings}


def base_with_dropout() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dropout(0.5)])


def test_finds_a_base_that_trains_although_called_with_training_false() -> None:
    inputs = keras.Input((6,))
    hidden = base_with_dropout()(inputs, training=False)
    run = fitted(compiled(inputs, keras.layers.Dense(1)(hidden)))
    (finding, *_) = run.judge().of("mode-flag-lost")
    assert "training=False" in finding.title


def test_is_quiet_about_a_base_whose_mode_nobody_fixed() -> None:
    inputs = keras.Input((6,))
    hidden = base_with_dropout()(inputs)
    run = fitted(compiled(inputs, keras.layers.Dense(1)(hidden)))
    assert run.judge().verdicts["mode-flag-lost"][0] == "ok"


class PeeksAhead(keras.layers.Layer):
    """Each position sees the mean of all, masked or not."""

    def __init__(self, *, honours: bool) -> None:
        super().__init__()
        self.supports_masking = True
        self.honours = honours

    def call(self, x: Any, mask: Any = None) -> Any:
        if not self.honours:
            return x + keras.ops.mean(x, axis=1, keepdims=True)
        weight = keras.ops.expand_dims(keras.ops.cast(mask, x.dtype), -1)
        total = keras.ops.sum(x * weight, axis=1, keepdims=True)
        return x + total / keras.ops.sum(weight, axis=1, keepdims=True)


@pytest.mark.parametrize(("honours", "expected"), [(False, True), (True, False)])
def test_finds_a_layer_that_takes_the_mask_and_does_not_honour_it(
    honours: bool, expected: bool
) -> None:
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4, mask_zero=True)(inputs)
    model = compiled(
        inputs, keras.layers.Dense(1)(PeeksAhead(honours=honours)(hidden)), optimizer="adam"
    )
    run = fitted(model, IDS, IDS[..., None].astype("float32"))
    assert ("mask-semantics" in slugs(run)) is expected


@pytest.mark.parametrize("causal", [True, False])
def test_finds_attention_that_looks_ahead_where_causality_is_declared(causal: bool) -> None:
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4)(inputs)
    attention = keras.layers.MultiHeadAttention(2, 4)
    hidden = attention(hidden, hidden, use_causal_mask=causal)
    run = fitted(
        compiled(inputs, keras.layers.Dense(1)(hidden)),
        np.random.default_rng(8).integers(1, 20, size=(64, 6)),
        np.ones((64, 6, 1), "float32"),
        options={"expect": Expect(causal=True)},
    )
    assert ("mask-semantics" in slugs(run)) is not causal


def test_follows_a_mask_that_attention_takes_off_its_input() -> None:
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(20, 8, mask_zero=True)(inputs)
    attended = keras.layers.MultiHeadAttention(2, 4)(hidden, hidden)
    outputs = keras.layers.LSTM(4)(keras.layers.LayerNormalization()(attended))
    run = fitted(compiled(inputs, keras.layers.Dense(1)(outputs)), IDS)
    rows = {row["class"]: row for row in run.audits("mask_flow")[0].facts["layers"]}
    assert rows["MultiHeadAttention"]["mask_in"] == pytest.approx(4 / 6)
    assert rows["LSTM"]["mask_in"] == pytest.approx(4 / 6)
    assert "LSTMCell" not in rows


class Swallows(keras.layers.Layer):
    """Turns NaN into numbers, as `where(x > 0, x, 0)` does."""

    def call(self, x: Any) -> Any:
        return keras.ops.where(x > 0, x, keras.ops.zeros_like(x))


@pytest.mark.parametrize(("guarded", "expected"), [(False, True), (True, False)])
def test_finds_a_layer_that_swallows_nan_made_in_the_model(guarded: bool, expected: bool) -> None:
    inputs = keras.Input((6,))
    inside = keras.ops.abs(inputs) if guarded else inputs
    run = fitted(compiled(inputs, keras.layers.Dense(1)(Swallows()(keras.ops.sqrt(inside)))))
    titles = [f.title for f in run.judge().of("nonfinite-propagation")]
    assert any("swallows turns NaN" in title for title in titles) is expected


@pytest.mark.parametrize(("shared", "expected"), [(16, True), (0, False)])
def test_finds_validation_rows_among_the_training_rows(shared: int, expected: bool) -> None:
    inputs = keras.Input((6,))
    other = np.random.default_rng(9).normal(size=(40 - shared, 6)).astype("float32")
    x = np.concatenate([X[:shared], other])
    y = np.concatenate([Y[:shared], np.zeros((40 - shared, 1), "float32")])
    run = fitted(compiled(inputs, keras.layers.Dense(1)(inputs)), validation_data=(x, y))
    assert run.audits("validation_overlap")[0].facts["shared"] == shared
    assert ("validation-overlap" in slugs(run)) is expected


@pytest.mark.parametrize(("rare", "expected"), [(2, True), (32, False)])
def test_finds_an_accuracy_no_better_than_the_most_common_class(rare: int, expected: bool) -> None:
    inputs = keras.Input((6,))
    labels = (np.arange(64) < rare).astype("int64")
    model = compiled(
        inputs,
        keras.layers.Dense(2, activation="softmax")(inputs),
        optimizer=keras.optimizers.SGD(0.1),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    run = fitted(model, X * 0.01, labels, epochs=12)
    assert run.audits("label_counts")[0].facts["outputs"][0]["counts"]["1"] == rare
    assert ("class-imbalance" in slugs(run)) is expected


class Inverted(keras.layers.Layer):
    """Scales in training alone."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def call(self, x: Any, training: bool = False) -> Any:
        return x * self.factor if training else x


@pytest.mark.parametrize(("factor", "expected"), [(3.0, True), (1.0, False)])
def test_finds_a_loss_that_differs_between_the_modes(factor: float, expected: bool) -> None:
    inputs = keras.Input((6,))
    run = fitted(compiled(inputs, keras.layers.Dense(1)(Inverted(factor)(inputs)), loss="mae"))
    assert ("train-eval-disagreement" in slugs(run)) is expected


def test_takes_as_many_rows_as_a_fixed_batch_demands() -> None:
    inputs = keras.Input(batch_shape=(16, 6))
    run = fitted(compiled(inputs, keras.layers.Dense(1)(inputs)))
    assert run.audits("shapes")[0].facts["layers"][0]["actual"][0] == 16


def test_reads_an_optimizer_inside_loss_scaling() -> None:
    inputs = keras.Input((6,))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.02))
    run = fitted(compiled(inputs, keras.layers.Dense(1)(inputs), optimizer=optimizer))
    facts = run.audits("optimizer")[0].facts
    assert facts["class"] == "SGD"
    assert facts["learning_rate"] == pytest.approx(0.02)


def test_says_which_expected_weights_a_model_does_not_hold(tmp_path: Any) -> None:
    inputs = keras.Input((6,))
    model = compiled(inputs, keras.layers.Dense(1)(inputs))
    path = tmp_path / "start.weights.h5"
    model.save_weights(path)
    options = {"expect": Expect(initial_weights=str(path))}
    assert "declared-config-drift" not in slugs(fitted(model, options=options))
    # Trained by now: no longer what was expected.
    assert "declared-config-drift" in slugs(fitted(model, options=options))


def test_audits_a_model_without_training_it(capsys: pytest.CaptureFixture[str]) -> None:
    inputs = keras.Input((6,))
    hidden = base_with_dropout()(inputs, training=False)
    model = compiled(inputs, keras.layers.Dense(1)(hidden))
    before = [np.array(keras.ops.convert_to_numpy(w)) for w in model.weights]
    report = trainsanity.audit(model, X[:8], Y[:8])
    assert "mode-flag-lost" in {rule.id for rule, _ in report.findings}
    assert "probe-failed" not in {rule.id for rule, _ in report.findings}, str(report)
    assert "mode-flag-lost" in capsys.readouterr().out
    after = [keras.ops.convert_to_numpy(w) for w in model.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_is_the_same_to_the_bit_with_audits() -> None:
    def weights(*, watched: bool) -> list[Any]:
        keras.utils.set_random_seed(5)
        inputs = keras.Input((6,), dtype="int32")
        hidden = keras.layers.Embedding(20, 4, mask_zero=True)(inputs)
        hidden = keras.layers.Dropout(0.3)(keras.layers.LSTM(4)(hidden))
        model = compiled(inputs, keras.layers.Dense(1)(hidden), optimizer="adam")
        if watched:
            fitted(model, IDS, options={"expect": Expect(causal=True)})
        else:
            model.fit(IDS, Y, epochs=3, batch_size=16, verbose=0)
        return [keras.ops.convert_to_numpy(w) for w in model.weights]

    pairs = zip(weights(watched=False), weights(watched=True), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


class CutOff(keras.losses.Loss):
    """Half of the loss is cut off from the gradient."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__(name="cut_off")
        self.cut = cut

    def call(self, y_true: Any, y_pred: Any) -> Any:
        error = keras.ops.square(y_true - y_pred)
        other = keras.ops.stop_gradient(error) if self.cut else error
        return keras.ops.mean(error + 2.0 * other, axis=-1)


@pytest.mark.parametrize("cut", [True, False])
def test_finds_a_loss_that_is_partly_cut_off_from_the_gradient(cut: bool) -> None:
    inputs = keras.Input((6,))
    run = fitted(compiled(inputs, keras.layers.Dense(1)(inputs), loss=CutOff(cut=cut)))
    verdict, reason = run.judge().verdicts["gradient-mismatch"]
    assert verdict == ("alert" if cut else "ok"), reason


class Emptied(keras.optimizers.Adagrad):
    """Fills its accumulators with zeros, whatever its argument says."""

    def build(self, variables: Any) -> None:
        super().build(variables)
        for slot in self._accumulators:
            slot.assign(keras.ops.zeros(slot.shape))


@pytest.mark.parametrize(("kind", "expected"), [(Emptied, True), (keras.optimizers.Adagrad, False)])
def test_finds_a_slot_that_does_not_hold_its_argument(kind: Any, expected: bool) -> None:
    inputs = keras.Input((6,))
    run = fitted(compiled(inputs, keras.layers.Dense(1)(inputs), optimizer=kind(0.01)))
    assert ("declared-config-drift" in slugs(run)) is expected


class SaysIt(keras.callbacks.Callback):
    """Announces a reduction in the first epoch, and does it or not."""

    def __init__(self, *, does_it: bool) -> None:
        super().__init__()
        self.does_it = does_it

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            if self.does_it:
                self.model.optimizer.learning_rate = 0.001
            print("SaysIt reducing learning rate to 0.001.")


@pytest.mark.parametrize("does_it", [False, True])
def test_finds_a_callback_that_announces_what_it_does_not_do(does_it: bool) -> None:
    inputs = keras.Input((6,))
    callback = SaysIt(does_it=does_it)
    run = fitted(compiled(inputs, keras.layers.Dense(1)(inputs)), callbacks=[callback])
    assert run.judge().verdicts["announced-action-mismatch"][0] == ("ok" if does_it else "alert")
    assert "on_epoch_end" not in vars(callback)


class Stops(keras.callbacks.Callback):
    """Speaks of early stopping at the end of each epoch, and never stops."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said = said

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        print(self.said)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("Epoch 1: early stopping", "alert"), ("1 of 5 epochs to early stopping", "not_testable")],
)
def test_takes_only_what_keras_says_for_an_announced_stop(said: str, verdict: str) -> None:
    inputs = keras.Input((6,))
    model = compiled(inputs, keras.layers.Dense(1)(inputs))
    run = fitted(model, callbacks=[Stops(said)])
    assert run.judge().verdicts["announced-action-mismatch"][0] == verdict


class Chatty(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        print("first\rsecond")
        warnings.warn("old", FutureWarning, stacklevel=1)


def test_hears_what_is_printed_and_leaves_the_streams_as_they_were() -> None:
    let_earlier_runs_end()
    showwarning = warnings.showwarning
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run = watched_fit(model, X, Y, epochs=2, verbose=2, callbacks=[Chatty()])
    facts = [audit.facts for audit in run.audits("console")]
    assert [f["headers"] for f in facts] == [[1], [2]]
    assert facts[0]["lines"] >= 2
    # Backends may warn of themselves.
    (warned,) = [each for each in facts[0]["warnings"] if each["user_code"]]
    assert warned["category"] == "FutureWarning"
    assert "write" not in sys.stdout.__dict__
    assert "write" not in sys.stderr.__dict__
    assert warnings.showwarning is showwarning


class Leaks(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        sys.stderr.write("ERROR: customer 4711 has no address\n")


def test_what_is_printed_is_counted_and_not_kept() -> None:
    inputs = keras.Input((6,))
    model = compiled(inputs, keras.layers.Dense(1)(inputs))
    run = watched_fit(model, X, Y, callbacks=[Leaks()])
    (facts,) = [audit.facts for audit in run.audits("console")]
    (error,) = facts["error_lines"]
    assert (error["kind"], error["count"]) == ("ERROR", 1)
    assert error["origin"].startswith("tests/fits/test_audits.py:")
    assert "4711" not in str(facts)


class Halving(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self.model.set_weights([w / 2 for w in self.model.get_weights()])


def test_names_the_callback_that_wrote_to_the_weights_between_steps() -> None:
    let_earlier_runs_end()
    assign = keras.Variable.assign
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, name="head")])
    model.compile("sgd", "mse")
    run = fitted(model, epochs=1, callbacks=[Halving()])
    (finding,) = run.judge().of("weights-moved-outside-update")
    assert finding.subject == "Halving"
    assert finding.first_step == 3
    assert finding.severity == "advice"  # some do so on purpose
    (audit,) = run.audits("moved_outside")
    assert audit.facts["variables"] == [w.path for w in reversed(model.weights)]
    assert keras.Variable.assign is assign


def test_a_lambda_is_the_same_after_reload() -> None:
    """The bytes of its code differ, as they also tell how its constants are shared."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Lambda(lambda x: 1.0 * x)])
    model.add(keras.layers.Dense(1))
    model.compile("sgd", "mse")
    judgement = fitted(model, epochs=1).judge()
    assert judgement.verdicts["roundtrip-structure"] == ("ok", "")


class Evaluating(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.evaluate(X[:8], 2 * Y[:8], verbose=0)


def test_a_callback_that_evaluates_before_ours_raises_nothing() -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    judgement = fitted(model, callbacks=[Evaluating()]).judge()
    assert not judgement.at_least("warning")
    assert judgement.verdicts["path-disagreement"][0] == "ok"


class Samples(keras.layers.Layer):
    """Adds noise, at inference too, as the latent code of a variational autoencoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)


def test_does_not_compare_what_a_model_draws_at_random() -> None:
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(1)(Samples()(inputs))
    # XLA draws other numbers from the same seed.
    run = fitted(compiled(inputs, outputs, jit_compile=keras.backend.backend() != "torch"))
    assert not run.judge().of("path-disagreement")
    compared = [row for audit in run.audits("paths") for row in audit.facts["comparisons"]]
    assert {row["difference"]["noise"] > 0.1 for row in compared if row["kind"] == "execution"} == {
        True
    }


class WithMeans(keras.Model):
    """Shows beside its output a mean over the batch, and a table that is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.line = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        outputs = self.line(x)
        mean, table = keras.ops.mean(outputs), keras.ops.ones((8, 2))
        return {"line": outputs, "mean": mean, "table": table}


def test_compares_only_rows_of_samples_with_those_of_a_sample_alone() -> None:
    model = WithMeans()
    model.compile("sgd", {"line": "mse"})
    run = fitted(model, X, {"line": Y}, epochs=1)
    compared = run.audits("paths")[-1].facts["comparisons"]
    assert [row["kind"] for row in compared] == ["execution"] * 3 + ["batch"]
    assert "path-disagreement" not in slugs(run)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data")
def test_takes_its_rows_out_of_the_graph() -> None:
    """TensorFlow traces such a step twice, and runs what it has traced last."""
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    run = watched_fit(model, data, epochs=1, shuffle=False)
    assert [row["elements"] for row in _differences(run)] == [8]


def _differences(run: SpooledRun) -> list[dict[str, Any]]:
    return [row["difference"] for row in run.audits("roundtrip")[-1].facts["outputs"]]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="where tensors have such methods")
def test_reloads_a_model_whose_metric_uses_methods_of_tensors() -> None:
    @keras.saving.register_keras_serializable("tests")
    def near(y_true: Any, y_pred: Any) -> Any:
        return ((y_true - y_pred).abs() < 0.5).float().mean(dim=-1)

    inputs = keras.Input((6,))
    model = compiled(inputs, keras.layers.Dense(1)(inputs), metrics=[near])
    (audit,) = fitted(model).audits("roundtrip")
    assert not audit.facts.get("not_testable")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="about parameters of torch's own")
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_finds_a_parameter_that_no_optimizer_of_keras_knows(is_wrapped: bool) -> None:
    import torch

    class Scaled(keras.layers.Layer):  # type: ignore[misc] # Keras is Any to mypy
        def __init__(self) -> None:
            super().__init__()
            self.held = {"scale": torch.nn.Parameter(torch.ones(6))}

        def call(self, x: Any) -> Any:
            return x * self.held["scale"]

    inputs = keras.Input((6,))
    near_miss = keras.layers.TorchModuleWrapper(torch.nn.Linear(6, 6), output_shape=(None, 6))
    layer = near_miss if is_wrapped else Scaled()
    run = fitted(compiled(inputs, keras.layers.Dense(1)(layer(inputs))))
    assert ("untracked-weights" in slugs(run)) is not is_wrapped


@pytest.mark.parametrize("name", ["before.h5", "before.keras"])
@pytest.mark.filterwarnings("ignore:.*optimizer.*")
@pytest.mark.parametrize(
    ("make", "title"),
    [
        (keras.optimizers.Adam, "Adam before saving, RMSprop after loading"),
        (lambda: keras.optimizers.RMSprop(rho=0.7), "RMSprop with other options after loading"),
    ],
)
def test_finds_an_optimizer_that_saving_to_hdf5_makes_keras_forget(
    name: str, make: Any, title: str, tmp_path: Any
) -> None:
    """Keras takes RMSprop then."""
    inputs = keras.Input((6,))
    model = compiled(inputs, keras.layers.Dense(1)(inputs), optimizer=make())
    model.save(tmp_path / name)
    found = fitted(model).judge().of("roundtrip-structure")
    expected = [title]
    assert [finding.title for finding in found] == (expected if name.endswith("h5") else [])
