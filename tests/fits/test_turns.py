"""Evidence where some probes have a turn now and then only: where the step runs as Python code, and
in TensorFlow's graphs.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.watched import watched_fit

from trainsanity import pace
from trainsanity.spooled import SpooledRun

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="on JAX evidence is never left out"
)

BATCHES, BATCH = 150, 4
LATE, POISON = 90, 97  # batches of the first epoch, after the first steps that are looked at whole
RATE = 0.01


class Nudge(keras.callbacks.Callback):
    """Writes to a weight after one batch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == LATE - 1 and self.model.optimizer.iterations < BATCHES:
            bias = self.model.layers[-1].bias
            bias.assign(bias + 0.25)


def model(*, eager: bool = True) -> keras.Model:
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(keras.optimizers.Adam(RATE), "mse", metrics=["mae"], run_eagerly=eager)
    return made


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCHES * BATCH, 3)).astype("float32")
    return x, (x @ [[1.0], [2.0], [3.0]]).astype("float32")


FIT = {"batch_size": BATCH, "epochs": 2, "shuffle": False}


@pytest.fixture(scope="module", params=["eager", "graph"])
def eager(request) -> bool:
    if request.param == "graph" and keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow makes graphs")
    return request.param == "eager"


@pytest.fixture(scope="module")
def watched(eager) -> keras.Model:
    return model(eager=eager)


@pytest.fixture(scope="module")
def run(watched, data) -> SpooledRun:
    with pytest.MonkeyPatch.context() as patch:
        # So that turns are as rare as can be.
        patch.setattr(pace, "affordable", lambda *_: pace.MOST)
        patch.setattr(pace, "TRIAL", pace.MOST)
        return watched_fit(watched, *data, callbacks=[Nudge()], **FIT)


def test_what_adds_up_over_an_epoch_is_of_every_batch(run):
    for name in ("batch/size", "mae/reported", "mae/recomputed", "loss/recomputed", "loss/batch"):
        assert run.signal(name)[0].tolist() == list(range(1, 2 * BATCHES + 1)), name
    for key in ("mae", "loss"):
        (_, shown), (_, true) = run.signal(f"{key}/reported"), run.signal(f"{key}/recomputed")
        np.testing.assert_allclose(shown, true, rtol=1e-4)
    assert [audit.facts["batches"] for audit in run.audits("data_epoch")] == [BATCHES] * 2


def test_other_probes_have_their_turn_at_first_and_then_now_and_then(run):
    turns = run.signal("gradient/norm")[0].tolist()
    first = list(range(1, pace.FIRST + 1))
    # The batch after somebody wrote to weights, the first of an epoch, and MOST steps after each.
    later = [LATE + 1, BATCHES + 1, BATCHES + 1 + pace.MOST, BATCHES + 1 + 2 * pace.MOST]
    assert turns == first + later
    assert run.signal("learning_rate/effective")[0].tolist() == turns


def test_the_shadow_follows_after_steps_without_a_turn(run):
    _, effective = run.signal("learning_rate/effective")
    np.testing.assert_allclose(effective, RATE, rtol=1e-3)


def test_a_write_between_two_steps_is_measured_also_where_no_turn_was_due(run, eager):
    steps, moved = run.signal("weights/moved_outside")
    found = dict(zip(steps.tolist(), moved, strict=True))
    assert found.pop(LATE + 1) == pytest.approx(0.25, rel=1e-4)
    known = {step: value for step, value in found.items() if not np.isnan(value)}
    assert set(known.values()) == {0.0}
    # A graph notes no weights before a turn, so these are only known where somebody writes.
    assert {BATCHES + 1, *([BATCHES + 1 + pace.MOST] if eager else [])} <= set(known)
    assert [audit.facts["by"] for audit in run.audits("moved_outside")] == [["Nudge"]]


def test_says_what_was_left_out_how_often_and_why(run, eager):
    thinned = run.audits("thinned")[-1].facts
    names = thinned["signal"].split(", ")
    assert {"gradient/norm", "learning_rate/effective", "outputs/min"} <= set(names)
    assert not {"batch/size", "loss/reported", "mae/recomputed"} & set(names)
    assert thinned["stride"] == pace.MOST
    assert ("runs as Python code" if eager else "is compiled") in thinned["reason"]


def test_the_weights_are_those_of_a_plain_fit(run, watched, data, eager):
    plain = model(eager=eager)
    plain.fit(*data, callbacks=[Nudge()], verbose=0, **FIT)
    for with_us, without in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(with_us, without)


def test_only_the_write_is_reported(run):
    found = {rule.id for rule, _ in run.judge().at_least("warning")}
    assert found <= {"weights-moved-outside-update"}


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_a_loss_that_is_not_finite_gives_all_their_turn_at_once(data, monkeypatch, eager):
    if eager != (keras.backend.backend() == "torch"):
        pytest.skip("only torch and graphs know without a wait for the device")
    monkeypatch.setattr(pace, "affordable", lambda *_: pace.MOST)
    monkeypatch.setattr(pace, "TRIAL", pace.MOST)
    x, y = data[0][: 100 * BATCH].copy(), data[1][: 100 * BATCH]
    x[(POISON - 1) * BATCH] = np.nan
    run = watched_fit(model(eager=eager), x, y, batch_size=BATCH, shuffle=False)
    steps, gradients = run.signal("gradient/nonfinite")
    assert steps.tolist()[pace.FIRST] == POISON
    assert gradients[pace.FIRST] == 4
    steps, outputs = run.signal("outputs/nonfinite")
    assert dict(zip(steps.tolist(), outputs, strict=True))[POISON] == 1
    # The weights become NaN, and on torch the shadow has not followed the steps before a turn that
    # nobody planned.
    steps, effective = run.signal("learning_rate/effective")
    assert np.isnan(effective[steps >= POISON]).all()
