"""What probes measure in the step, against the same numbers computed by hand with numpy."""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

import keras
import numpy as np
import pytest
from watched import watched_fit

from trainsanity.run import Run
from trainsanity.spooled import SpooledRun

BACKEND = keras.backend.backend()
SAME = {"rtol": 2e-5, "atol": 1e-6}


def still_optimizer(**options: Any) -> keras.optimizers.Optimizer:
    """One that never moves a weight, so that numbers can be recomputed after training."""
    return keras.optimizers.SGD(0.0, **options)


def line(outputs: int = 1, **compiled: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs)])
    compiled.setdefault("optimizer", still_optimizer())
    model.compile(**{"loss": "mse", **compiled})
    return model


def rows(count: int = 12, width: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).normal(size=(count, width)).astype("float32")


def values(run: SpooledRun, name: str) -> np.ndarray[Any, Any]:
    found = run.signal(name)[1]
    assert len(found), f"{name} was not measured; known are {sorted(run.names)}"
    return found


def facts(run: SpooledRun, name: str) -> dict[str, Any]:
    return dict(run.audits(name)[-1].facts)


class OuterDifference(keras.losses.Loss):
    """Subtracts outputs (N, 1) from labels (N,) as they come."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.square(keras.ops.reshape(y_true, (-1,)) - y_pred)


def test_elements_of_the_loss_are_those_of_the_labels() -> None:
    run = watched_fit(line(), rows(), rows(12, 1), batch_size=4)
    np.testing.assert_array_equal(values(run, "loss/elements"), [4, 4, 4])
    np.testing.assert_array_equal(values(run, "loss/expected_elements"), [4, 4, 4])


def test_broadcasting_squares_the_elements_and_is_found() -> None:
    run = watched_fit(line(loss=OuterDifference()), rows(), rows(12, 1)[:, 0], batch_size=4)
    np.testing.assert_array_equal(values(run, "loss/elements"), [16, 16, 16])
    np.testing.assert_array_equal(values(run, "loss/expected_elements"), [4, 4, 4])
    assert run.judge().of("loss-broadcast")


def test_weights_of_the_batch_and_the_loss_without_them() -> None:
    model, x, y = line(), rows(), rows(12, 1)
    weight = np.linspace(0.0, 2.0, 12).astype("float32")
    run = watched_fit(model, x, y, sample_weight=weight, batch_size=4, shuffle=False)
    batches = weight.reshape(3, 4)
    for end in ("mean", "min", "max"):
        expected = getattr(batches, end)(axis=1)
        np.testing.assert_allclose(values(run, f"sample_weight/given_{end}"), expected, **SAME)
        np.testing.assert_allclose(values(run, f"sample_weight/{end}"), expected, **SAME)
    squares = np.square(np.asarray(model.predict(x, verbose=0)) - y).reshape(3, 4)
    np.testing.assert_allclose(values(run, "loss/batch_unweighted"), squares.mean(axis=1), **SAME)
    np.testing.assert_allclose(values(run, "loss/batch"), (squares * batches).mean(axis=1), **SAME)


def test_class_weight_declares_the_mean_that_the_batch_carries() -> None:
    y = np.array([0, 1, 2, 0, 1, 1, 2, 2, 0, 0, 0, 1])
    model = line(3, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = watched_fit(model, rows(), y, class_weight={0: 0.5, 2: 4.0}, batch_size=4, shuffle=False)
    expected = np.array([0.5, 1.0, 4.0])[y].reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(values(run, "sample_weight/declared_mean"), expected, **SAME)
    np.testing.assert_allclose(values(run, "sample_weight/given_mean"), expected, **SAME)


def test_class_weight_with_texts_as_keys_is_found() -> None:
    y = np.tile([0, 1, 2, 1], 6)
    model = line(3, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = watched_fit(
        model, rows(24), y, class_weight={"0": 3.0, "1": 2.0}, batch_size=4, shuffle=False
    )
    np.testing.assert_allclose(values(run, "sample_weight/declared_mean"), [2.0] * 6, **SAME)
    assert run.judge().of("sample-weight-effect")


def shifted_data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ids of lengths 6, 3, 5 and 2, padded with 0 to 7; targets are the next id."""
    ids = np.zeros((12, 7), "int32")
    random = np.random.default_rng(1)
    for row in range(12):
        length = (6, 3, 5, 2)[row % 4]
        ids[row, :length] = random.integers(1, 9, length)
    targets = np.zeros_like(ids)
    targets[:, :-1] = ids[:, 1:]
    return ids, targets


def language_model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            keras.layers.Embedding(9, 4, mask_zero=True),
            keras.layers.Dense(9),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(still_optimizer(), loss)
    return model


def test_knows_whose_function_a_metric_is() -> None:
    def near(labels: Any, outputs: Any) -> Any:
        return keras.ops.cast(keras.ops.abs(labels - outputs) < 1, "float32")

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", near])
    x = np.ones((8, 4), "float32")
    (audit,) = watched_fit(model, x, x[:, :1], batch_size=4).audits("columns")
    whose = {metric["key"]: metric["recomputed_by"] for metric in audit.facts["metrics"]}
    assert whose == {"mae": "reference", "near": "own function"}


def test_targets_shifted_against_the_mask() -> None:
    ids, targets = shifted_data()
    run = watched_fit(language_model(), ids, targets, batch_size=4)
    np.testing.assert_array_equal(values(run, "mask/target_padding_most"), [1, 1, 1])
    np.testing.assert_allclose(values(run, "mask/target_next_input"), [1, 1, 1], **SAME)
    assert run.judge().of("mask-target-misaligned")


def test_loss_of_all_positions_alike() -> None:
    ids, targets = shifted_data()
    ids[8:] = np.where(np.arange(7) < 1, ids[8:], 0)
    model = language_model()
    run = watched_fit(model, ids, targets, batch_size=4, shuffle=False)
    logits = np.asarray(model.predict(ids, verbose=0), np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
    real = ids != 0
    assert values(run, "loss/by_position")[-1] == pytest.approx(losses[real].mean(), rel=1e-4)
    means = [losses[i : i + 4][real[i : i + 4]].mean() for i in (0, 4, 8)]
    assert values(run, "loss/recomputed")[-1] == pytest.approx(np.mean(means), rel=1e-4)


def native(name: str) -> Any:
    """A function of TensorFlow's own, of which Keras knows by the operation alone."""
    import tensorflow as tf

    return {"softmax": tf.nn.softmax, "sigmoid": tf.math.sigmoid}[name]


ENTROPIES = {"softmax": "sparse_categorical_crossentropy", "sigmoid": "binary_crossentropy"}


@pytest.mark.parametrize("is_native", [False, True] if BACKEND == "tensorflow" else [False])
@pytest.mark.parametrize("name", ENTROPIES)
def test_probabilities_of_zero_in_a_compiled_step(name: str, is_native: bool) -> None:
    """Keras goes back to the logits where it can: the loss is larger than any of -log(1e-7)."""
    activation = native(name) if is_native else name
    classes = 3 if name == "softmax" else 1
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(classes, activation, kernel_initializer="ones")]
    )
    model.compile(
        still_optimizer(),
        ENTROPIES[name],
        metrics=[ENTROPIES[name]],
        jit_compile=BACKEND != "torch",
    )
    model.layers[0].set_weights([60 * np.eye(3, classes), np.zeros(classes)])
    x, y = np.eye(3, dtype="float32")[[1, 2, 0, 0]], np.array([[0], [1], [0], [1]])
    run = watched_fit(model, x, y, batch_size=2, shuffle=False)
    for quantity in ("loss", ENTROPIES[name]):
        recomputed, reported = (values(run, f"{quantity}/{w}") for w in ("recomputed", "reported"))
        np.testing.assert_allclose(recomputed, reported, **SAME)
    judged = run.judge()
    for rule in ("metric-recompute-mismatch", "loss-decomposition-mismatch"):
        assert judged.of(rule) == []


def test_range_of_outputs_and_what_the_loss_takes_them_for() -> None:
    model = line(3, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = rows()
    run = watched_fit(model, x, np.arange(12) % 3, batch_size=4, shuffle=False)
    outputs = np.asarray(model.predict(x, verbose=0)).reshape(3, 4, 3)
    np.testing.assert_allclose(values(run, "outputs/min"), outputs.min(axis=(1, 2)), **SAME)
    np.testing.assert_allclose(values(run, "outputs/max"), outputs.max(axis=(1, 2)), **SAME)
    sums = outputs.sum(axis=2)
    np.testing.assert_allclose(values(run, "outputs/sum_min"), sums.min(axis=1), **SAME)
    np.testing.assert_allclose(values(run, "outputs/sum_max"), sums.max(axis=1), **SAME)
    (output,) = facts(run, "columns")["outputs"]
    assert output["shape"] == [None, 3]
    assert output["label_shape"][:1] == [None]
    assert output["dtype"] == "float32"
    assert output["from_logits"] is True
    assert output["activation"] == "linear"
    assert output["ignore_class"] is None
    assert output["aligned_with_mask"] is False


def test_ignored_class_is_no_label() -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    y = np.array([-1, 1, 2, 0, 1, 1, 2, 2, -1, -1, -1, -1])
    run = watched_fit(line(3, loss=loss), rows(), y, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(values(run, "labels/min"), [0, 1, np.nan])
    np.testing.assert_array_equal(values(run, "labels/max"), [2, 2, np.nan])
    assert facts(run, "columns")["outputs"][0]["ignore_class"] == -1


@pytest.mark.parametrize(
    ("kind", "option"),
    [("value", "clipvalue"), ("norm", "clipnorm"), ("global_norm", "global_clipnorm")],
)
def test_gradients_after_clipping_keep_the_bound(kind: str, option: str) -> None:
    model = line(optimizer=still_optimizer(**{option: 0.01}))
    run = watched_fit(model, rows(), 100 * rows(12, 1), batch_size=4)
    np.testing.assert_allclose(values(run, f"clip:{kind}/declared"), [0.01] * 3, **SAME)
    np.testing.assert_allclose(values(run, f"clip:{kind}/applied"), [0.01] * 3, rtol=1e-3)
    assert not run.judge().of("clip-bound-exceeded")


def test_a_bound_of_zero_that_keras_ignores_is_found() -> None:
    run = watched_fit(line(optimizer=still_optimizer(clipnorm=0)), rows(), rows(12, 1))
    assert values(run, "clip:norm/declared")[0] == 0
    assert values(run, "clip:norm/applied")[0] > 0
    assert run.judge().of("clip-bound-exceeded")


def test_inputs_are_measured_behind_rescaling() -> None:
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(2, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(still_optimizer(), "mse")
    x = np.random.default_rng(0).uniform(1, 255, (8, 6, 6, 1)).astype("float32")
    x[:, 0] = 0  # 6 of the 20 pixels of the border
    run = watched_fit(model, x, rows(8, 1), batch_size=8)
    scaled = x / 255
    for end in ("mean", "std", "min", "max"):
        assert values(run, f"inputs/{end}")[0] == pytest.approx(getattr(scaled, end)(), rel=1e-4)
    assert values(run, "inputs/border_zero")[0] == pytest.approx(6 / 20)


def test_largest_gradient_and_updates_of_an_epoch() -> None:
    model, x, y = line(), rows(), rows(12, 1)
    run = watched_fit(model, x, y, batch_size=4, shuffle=False, epochs=2)
    residual = 2 * (np.asarray(model.predict(x, verbose=0)) - y)
    kernel = [np.abs(x[i : i + 4].T @ residual[i : i + 4] / 4).max() for i in (0, 4, 8)]
    bias = [np.abs(residual[i : i + 4].mean()) for i in (0, 4, 8)]
    for audit in run.audits("weights"):
        found = {v["path"].rpartition("/")[2]: v for v in audit.facts["variables"]}
        assert found["kernel"]["gradient_largest"] == pytest.approx(max(kernel), rel=1e-4)
        assert found["bias"]["gradient_largest"] == pytest.approx(max(bias), rel=1e-4)
        assert audit.facts["updates"] == 3


def test_counts_what_is_not_finite_in_large_gradients_and_inputs() -> None:
    """A label that is NaN spoils the gradients of one output alone."""
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(80)])
    model.compile(still_optimizer(), "mse")
    x, y = rows(300, 300), rows(300, 80)
    y[150, 7] = np.nan
    x[250, 3:5] = np.nan, np.inf
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).copy()
    run = watched_fit(model, x, y, batch_size=100, shuffle=False)
    np.testing.assert_array_equal(values(run, "gradient/nonfinite"), [0, 301, 301 * 80])
    np.testing.assert_array_equal(values(run, "inputs/nonfinite"), [0, 0, 2])
    norms = values(run, "gradient/norm")
    wrong = 2 / (100 * 80) * (x[:100] @ kernel - y[:100])
    by_hand = np.sqrt(np.sum((x[:100].T @ wrong) ** 2) + np.sum(wrong.sum(axis=0) ** 2))
    np.testing.assert_allclose(norms[0], by_hand, rtol=1e-5)
    assert not np.isfinite(norms[1:]).any()


def test_updates_under_gradient_accumulation() -> None:
    model = line(optimizer=still_optimizer(gradient_accumulation_steps=2))
    run = watched_fit(model, rows(16), rows(16, 1), batch_size=4)
    assert facts(run, "weights")["updates"] == 2
    assert facts(run, "epoch")["gradient_accumulation"] == 2
    assert not run.judge().of("step-count-mismatch")


def test_steps_that_loss_scaling_skips() -> None:
    model = line(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3)))
    x = rows(16)
    x[5] = np.inf  # in the second batch
    run = watched_fit(model, x, rows(16, 1), batch_size=4, shuffle=False)
    epoch = facts(run, "epoch")
    assert epoch["batches"] == 4
    assert epoch["loss_scale_skips"] == 1
    assert epoch["iterations_after"] - epoch["iterations_before"] == 3
    assert not run.judge().of("step-count-mismatch")


def test_test_passes_are_audited() -> None:
    x, y = rows(20), rows(20, 1)
    run = watched_fit(line(), x, y, batch_size=4, validation_data=(x[:10], y[:10]), epochs=2)
    passes = [audit.facts for audit in run.audits("evaluate")]
    assert [p["batches"] for p in passes] == [3, 3]
    assert {p["declared_steps"] for p in passes} == {3}
    assert all(p["inside_fit"] for p in passes)
    assert facts(run, "epoch")["progress_total"] == 5


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_arguments_that_keras_ignores_are_unknown() -> None:
    def batches() -> Any:
        while True:
            yield rows(4), rows(4, 1)

    by_generator = watched_fit(line(), batches(), steps_per_epoch=3)
    assert facts(by_generator, "fit")["shuffle"] is None
    by_arrays = watched_fit(line(), rows(), rows(12, 1), shuffle=True)
    assert facts(by_arrays, "fit")["shuffle"] is True
    assert facts(by_arrays, "compile")["custom_compute_loss"] is False


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced on torch")
def test_traces_and_signatures() -> None:
    run = watched_fit(line(), rows(16), rows(16, 1), batch_size=4, epochs=3)
    assert 1 <= values(run, "traces/count")[-1] <= 3
    assert values(run, "traces/signatures")[-1] == 1
    assert not run.judge().of("retracing")


class Growing(keras.callbacks.Callback):
    """Makes a layer of two variables after each epoch, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.kept.append(keras.layers.Dense(1))
        self.kept[-1].build((None, 2))
        keras.Variable(0.0)  # gone at once


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_without_pages_of_files() -> None:
    run = watched_fit(line(), rows(), rows(12, 1))
    without, whole = (values(run, f"memory/{name}") for name in ("without_files", "rss"))
    assert (without > 0).all()
    assert (without < whole).all(), "libraries are files"


def test_variables_alive() -> None:
    """Without a look at all objects there are: tuples that other threads are making break then."""
    before = keras.Variable.__init__
    run = watched_fit(line(), rows(), rows(12, 1), epochs=3, callbacks=[Growing()])
    alive = values(run, "memory/live_variables")
    assert alive[0] >= 2 + 2  # at least those of this model and the new layer
    assert [b - a for a, b in itertools.pairwise(alive)] == [2, 2]
    assert keras.Variable.__init__ is before


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data is run inside TensorFlow's graph")
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("at_once", [1, 3])
def test_the_step_at_which_data_of_unknown_length_end_is_no_batch(at_once: int) -> None:
    import tensorflow as tf

    def batches() -> Any:
        for start in (0, 4, 8, 12):
            yield rows(16)[start : start + 4], rows(16, 1)[start : start + 4]

    signature = (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1)))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    model = line(steps_per_execution=at_once)
    run = watched_fit(model, data, epochs=3, shuffle=False)
    np.testing.assert_array_equal(run.signal("batch/size")[1], [4] * 12)
    np.testing.assert_array_equal(run.signal("batch/size")[0], np.arange(1, 13))
    assert [audit.facts["batches"] for audit in run.audits("epoch")] == [4, 4, 4]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere batches come from the host")
def test_tells_waiting_for_data_from_the_step() -> None:
    import tensorflow as tf

    slowness = 0.1  # seconds that this source takes for a batch
    trained = Trained()

    def batches() -> Any:
        for place in range(10):
            trained.wait_for(place)  # nothing is read ahead, however long a step takes
            threading.Event().wait(slowness)
            yield rows(4), rows(4, 1)

    signature = (tf.TensorSpec((4, 3)), tf.TensorSpec((4, 1)))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    slow = watched_fit(line(), data, shuffle=False, steps_per_epoch=10, callbacks=[trained])
    (steps, waited), took = slow.signal("time/data_wait"), slow.signal("time/step")[1]
    assert steps.tolist() == list(range(2, 11))  # the first is traced: nothing is known of it
    assert slowness / 2 < np.median(waited[2:]) < np.median(took[3:])
    at_hand = watched_fit(line(), rows(40), rows(40, 1), batch_size=4).signal("time/data_wait")[1]
    assert 0 <= np.median(at_hand[1:]) < slowness / 4


class Trained(keras.callbacks.Callback):
    """Lets others wait for batches to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self._batches = 0
        self._changed = threading.Condition()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        with self._changed:
            self._batches += 1
            self._changed.notify_all()

    def wait_for(self, batches: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._batches >= batches, 60)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="names are the same everywhere")
def test_a_metric_with_an_impossible_name_does_not_cost_the_others() -> None:
    """Names of metrics may be as long as one likes, and have line ends in them."""
    metrics = [keras.metrics.MeanSquaredError(name=name) for name in ("long_" * 60, "two\nlines")]
    run = watched_fit(line(metrics=metrics), rows(), rows(12, 1), batch_size=4)
    assert len(values(run, "loss/reported")) == 3
    for start in ("long_long_", "two\N{REPLACEMENT CHARACTER}lines"):
        (name,) = [n for n in run.names if n.startswith(start) and n.endswith("/reported")]
        np.testing.assert_array_equal(values(run, name), values(run, "loss/reported"))
    assert not run.audits("probe_failed")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the end is the same everywhere")
def test_a_run_comes_to_its_end_where_its_samples_could_not_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: Run, *_: Any) -> None:
        raise OverflowError("too much")

    monkeypatch.setattr(Run, "emit", broken)
    run = watched_fit(line(), rows(), rows(12, 1), batch_size=4)
    assert run.packets[-1].state == "finished"
    assert "stream" in [audit.facts["probe"] for audit in run.audits("probe_failed")]
