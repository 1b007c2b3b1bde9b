"""When the sample is audited: after the first batch, which must not wait, and before the second."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from watched import watched_fit

from trainsanity import sample_audits
from trainsanity.probes import train_eval

IDS = np.random.default_rng(5).integers(1, 9, size=(24, 6)).astype("int32")
IDS[:, 4:] = 0
Y = np.ones((24, 6, 1), "float32")


def tagger(**options: Any) -> keras.Model:
    """With a mask, and random numbers in training."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    hidden = keras.layers.Dropout(0.5)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("adam", "mse", **options)
    return model


def every_value(model: keras.Model) -> list[Any]:
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v) for v in variables]


def test_audits_the_sample_between_two_batches_and_trains_the_same() -> None:
    plain = tagger()
    plain.fit(IDS, Y, batch_size=4, shuffle=False, verbose=0)
    watched = tagger()  # torch drops out by the generator of the process, which is seeded here
    run = watched_fit(watched, IDS, Y, batch_size=4, shuffle=False)
    assert not run.audits("probe_failed")
    (flow,) = run.audits("mask_flow")
    assert flow.step == 1, "a call that dies in its first epoch has it"
    assert flow.facts["outputs"]["output"]["mask"] == pytest.approx(4 / 6)
    for a, b in zip(every_value(plain), every_value(watched), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere the host reads it")
def test_takes_the_sample_of_a_data_set_before_xla_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tensorflow as tf

    for name in ("EPOCH_END_SECONDS", "LAST_SECONDS"):
        monkeypatch.setattr(sample_audits, name, 0.0)

    def data() -> tf.data.Dataset:
        batches = tf.data.Dataset.from_generator(
            lambda: taken.append(1) or iter(zip(IDS, Y, strict=True)),
            output_signature=(tf.TensorSpec((6,), tf.int32), tf.TensorSpec((6, 1), tf.float32)),
        )
        return batches.batch(10).apply(tf.data.experimental.assert_cardinality(3))

    def compiled() -> keras.Model:
        return tagger(jit_compile=True, steps_per_execution=2)

    taken: list[int] = []
    plain, watched = compiled(), compiled()
    plain.fit(data(), epochs=2, shuffle=False, verbose=0)
    before = taken.copy()
    run = watched_fit(watched, data(), epochs=2, shuffle=False)
    assert taken == before * 2, "the data is read as often as without the callback"
    assert not run.audits("probe_failed")
    (flow,) = run.audits("mask_flow")
    assert flow.step == 2
    assert flow.facts["outputs"]["output"]["mask"] == pytest.approx(4 / 6)
    np.testing.assert_array_equal(run.signal("batch/size")[1], [10, 10, 4] * 2)
    for a, b in zip(every_value(plain), every_value(watched), strict=True):
        np.testing.assert_array_equal(a, b)


def test_audits_nothing_where_no_time_is_given_for_it() -> None:
    run = watched_fit(tagger(), IDS, Y, batch_size=4, options={"audit_budget": 0.0})
    for name in ("mask_flow", "roundtrip", "train_eval"):
        (audit,) = run.audits(name)
        assert audit.facts == {"not_testable": "audit_budget is 0"}


def test_runs_no_pass_at_the_end_where_no_time_is_given_for_it() -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    run = watched_fit(model, IDS, Y[:, 0, 0], batch_size=4, options={"audit_budget": 0.0})
    (audit,) = run.audits("logits")
    assert audit.facts == {"not_testable": "audit_budget is 0"}


def test_begins_no_audit_that_would_take_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_audits, "PASS_SECONDS", 1e-9)  # as if a pass took for ever
    run = watched_fit(tagger(), IDS, Y, batch_size=4)
    (flow,) = run.audits("mask_flow")
    assert flow.step == 1, "it needs nothing but the pass"
    for name in ("shapes", "paths", "gradient_check"):
        (audit,) = run.audits(name)
        assert "would have" in audit.facts["not_testable"]


class Clock:
    """Time that only forward passes of audits take."""

    def __init__(self, pass_seconds: float) -> None:
        self.seconds, self.pass_seconds = 0.0, pass_seconds

    def monotonic(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("pass_seconds", "audited"), [(0.02, 8), (0.3, 1)])
def test_what_is_audited_at_every_epoch_keeps_to_the_time_it_has(
    pass_seconds: float, audited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(pass_seconds)
    monkeypatch.setattr(sample_audits, "time", clock)
    call = train_eval.call_model

    def slow(*args: Any, **kwargs: Any) -> Any:
        clock.seconds += clock.pass_seconds
        return call(*args, **kwargs)

    monkeypatch.setattr(train_eval, "call_model", slow)
    run = watched_fit(tagger(), IDS, Y, batch_size=4, epochs=8)
    assert len(run.audits("train_eval")) == audited


def test_audits_no_longer_at_once_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the training was."""
    for name in ("START_UP_SECONDS", "EPOCH_END_SECONDS", "MOST_SECONDS"):
        monkeypatch.setattr(sample_audits, name, 0.0)
    run = watched_fit(tagger(), IDS, Y, batch_size=4, options={"audit_budget": 1.0})
    for name in ("paths", "roundtrip"):
        (audit,) = run.audits(name)
        assert "used up" in audit.facts["not_testable"]


class OwnLoss(keras.Model):
    """Knows tensors only, as torch does where an array is on the left of a minus."""

    weighs = False

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        losses = keras.ops.square(y - y_pred)
        return keras.ops.mean(losses * sample_weight[:, None] if self.weighs else losses)


@pytest.mark.parametrize("weighs", [False, True])
def test_a_compute_loss_gets_what_it_gets_in_training(weighs: bool) -> None:
    inputs = keras.Input((4,))
    model = OwnLoss(inputs, keras.layers.Dense(1)(inputs))
    model.weighs = weighs
    model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(64, 4))
    weights = np.linspace(0.1, 2.0, 64)
    run = watched_fit(model, x, x[:, :1], sample_weight=weights, batch_size=8)
    found = {(rule.id, f.subject) for rule, f in run.judge().at_least("warning")}
    assert found == (set() if weighs else {("sample-weight-effect", "loss")})
