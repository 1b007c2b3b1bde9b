"""Steps that run as Python code beside the tape are looked at later, many at once, from copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from tests.watched import offline_callback, run_of, watched_fit

from trainsanity import later, pace
from trainsanity.host_ring import HostRing
from trainsanity.probes.data_order import _sums_of_arrays
from trainsanity.probes.losses import Losses

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="elsewhere a step is looked at as it runs"
)

BATCHES, ROWS, TIME = 180, 4, 5
RATE = 1e-3


@pytest.fixture(autouse=True)
def _few_turns(monkeypatch) -> None:
    monkeypatch.setattr(pace, "affordable", lambda *_: pace.MOST)


@pytest.fixture
def together(monkeypatch) -> list[int]:
    """How many steps were looked at together, each time."""
    counts: list[int] = []
    real = later.columns_of
    monkeypatch.setattr(
        later, "columns_of", lambda steps, *rest: counts.append(len(steps)) or real(steps, *rest)
    )
    return counts


def tagger() -> keras.Model:
    keras.utils.set_random_seed(0)
    ids = keras.Input((TIME,), dtype="int32")
    tokens = keras.layers.Embedding(20, 4, mask_zero=True, name="tokens")(ids)
    made = keras.Model(ids, keras.layers.Dense(3, activation="softmax")(tokens))
    made.compile(
        keras.optimizers.SGD(RATE),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    return made


def batches() -> Iterator[tuple[Any, ...]]:
    """All from the same three arrays, filled anew for each."""
    random = np.random.default_rng(1)
    ids, tags = np.empty((ROWS, TIME), "int32"), np.empty((ROWS, TIME), "int32")
    weights = np.empty((ROWS, TIME), "float32")
    for _ in range(BATCHES):
        ids[...] = random.integers(1, 20, ids.shape)
        ids[:, TIME - int(random.integers(0, 3)) :] = 0
        tags[...] = random.integers(0, 3, tags.shape)
        weights[...] = random.uniform(0.5, 2.0, weights.shape)
        yield ids, tags, weights


def loader() -> Any:
    """Gives tensors that lie in the memory of these arrays."""
    from torch.utils.data import DataLoader, IterableDataset

    class Batches(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return batches()

        def __len__(self) -> int:
            return BATCHES

    return DataLoader(Batches(), batch_size=None)


def copies_of_batches() -> list[tuple[Any, ...]]:
    return [tuple(part.copy() for part in batch) for batch in batches()]


class Weights(keras.callbacks.Callback):
    """The weights before each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[Any] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.before.append(self.model.get_weights())


def by_hand(weights: list[Any], batch: tuple[Any, ...]) -> tuple[float, float, float]:
    """Loss, accuracy and weighted accuracy of a batch."""
    table, kernel, bias = weights
    ids, tags, given = batch
    logits = table[ids] @ kernel + bias
    outputs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    real = ids != 0
    losses = -np.log(np.take_along_axis(outputs, tags[..., None], axis=-1)[..., 0])
    right = outputs.argmax(axis=-1) == tags
    counted = given * real
    return (
        float((losses * counted).sum() / real.sum()),
        float(right[real].mean()),
        float((right * counted).sum() / counted.sum()),
    )


def test_each_batch_is_measured_as_it_was(together):
    kept = Weights()
    run = watched_fit(tagger(), loader(), shuffle=False, callbacks=[kept])
    assert sum(together) >= BATCHES - pace.FIRST - 8, together
    pairs = zip(kept.before, copies_of_batches(), strict=True)
    expected = np.array([by_hand(*pair) for pair in pairs])
    for name, true in zip(
        ("loss/batch", "accuracy/batch", "weighted_accuracy/batch"), expected.T, strict=True
    ):
        steps, measured = run.signal(name)
        assert steps.tolist() == list(range(1, BATCHES + 1)), name
        np.testing.assert_allclose(measured, true, rtol=2e-4, atol=1e-6, err_msg=name)
    (epoch,) = run.audits("data_epoch")
    assert epoch.facts["distinct_batches"] == BATCHES
    assert not run.judge().at_least("warning")


def test_looking_at_many_at_once_finds_what_looking_at_each_finds(monkeypatch):
    fingerprints: list[tuple[str, str]] = []

    def measured() -> dict[str, Any]:
        run = watched_fit(tagger(), loader(), shuffle=False)
        names = [name for name in run.names if not name.startswith(("time/", "memory/"))]
        assert len(names) > 20
        (epoch,) = run.audits("data_epoch")
        fingerprints.append((epoch.facts["order"], epoch.facts["content"]))
        return {name: run.signal(name) for name in names}

    at_once = measured()
    monkeypatch.setattr(later, "FEW", BATCHES)
    one_by_one = measured()
    monkeypatch.setattr(later, "MOST_BYTES", 0)
    as_they_ran = measured()
    assert at_once.keys() == one_by_one.keys() == as_they_ran.keys()
    assert len(set(fingerprints)) == 1, fingerprints
    for name, (steps, values) in at_once.items():
        for other_steps, others in (one_by_one[name], as_they_ran[name]):
            np.testing.assert_array_equal(steps, other_steps, err_msg=name)
            np.testing.assert_allclose(values, others, rtol=1e-5, atol=1e-6, err_msg=name)


def test_outputs_of_some_size_are_looked_at_together_too(together):
    """As of a tagger: 32 sequences of 64 words and 16 tags take 128 KiB."""
    random = np.random.default_rng(1)
    x = random.normal(size=(32 * 120, 64, 3)).astype("float32")
    y = random.integers(0, 16, (32 * 120, 64))
    model = keras.Sequential(
        [
            keras.Input((64, 3)),
            keras.layers.Dense(16, activation="softmax", kernel_initializer="zeros"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    run = watched_fit(model, x, y, batch_size=32, shuffle=False)
    assert sum(together) >= 120 - pace.FIRST - 8, together
    steps, losses = run.signal("loss/batch")
    assert steps.tolist() == list(range(1, 121))
    np.testing.assert_allclose(losses, np.log(16.0), rtol=1e-5)


def test_an_exception_loses_none_of_the_steps_before_it(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 149:
                raise RuntimeError("enough")

    callback = offline_callback(tmp_path)
    model = tagger()
    with pytest.raises(RuntimeError, match="enough"):
        model.fit(loader(), verbose=0, shuffle=False, callbacks=[callback, Stop()])
    model.fit(loader(), steps_per_epoch=1, verbose=0, shuffle=False)
    assert run_of(callback).signal("loss/batch")[0].tolist() == list(range(1, 151))


def test_a_probe_that_asks_for_a_value_is_shown_each_step(monkeypatch):
    real = Losses.trace_loss

    def asks(self, step):
        float(step.losses[0].sum())
        return real(self, step)

    monkeypatch.setattr(Losses, "trace_loss", asks)
    run = watched_fit(tagger(), loader(), shuffle=False)
    assert run.signal("loss/batch")[0].tolist() == list(range(1, BATCHES + 1))
    assert [audit.facts["probe"] for audit in run.audits("probe_failed")] == ["later"]


@pytest.mark.parametrize("shape", [(9,), (32, 1), (32, 20), (7, 3, 50), (3, 1000), (300, 40)])
def test_the_fingerprint_of_a_batch_is_the_same_whatever_is_looked_at_with_it(shape):
    many = np.random.default_rng(1).normal(size=(50, *shape)).astype("float32")
    together = _sums_of_arrays(many)
    alone = [[float(each[0]) for each in _sums_of_arrays(one[None].copy())] for one in many]
    assert np.stack(together, axis=1).tolist() == alone


def test_rows_that_wait_come_in_their_order():
    ring, count = np.zeros((4, 2), np.float32), np.zeros((), np.int32)
    rows = HostRing(ring, count, -1.0, float)
    made: list[list[int]] = []

    def make(sources: list[int]) -> Iterator[Any]:
        made.append(sources)
        return ([[i], {0: float(source)}] for i, source in enumerate(sources))

    rows.write_later(make, 1)
    rows.write_later(make, 2)
    rows.write({1: 3.0})
    rows.write_later(make, 4)
    assert count == 0
    rows.put_in_place()
    assert made == [[1, 2, 4]]
    assert count == 4
    np.testing.assert_array_equal(ring, [[1, -1], [2, -1], [-1, 3], [4, -1]])


def test_a_row_that_cannot_be_made_leaves_the_others_in_their_places():
    ring, count = np.zeros((4, 1), np.float32), np.zeros((), np.int32)
    rows = HostRing(ring, count, -1.0, lambda value: value)

    def make(sources: list[int]) -> Iterator[Any]:
        yield [2, 0], {0: np.array([3.0, 1.0])}
        raise ValueError(sources[1])

    for step in (1, 2, 3):
        rows.write_later(make, step)
    with pytest.raises(ValueError, match="2"):
        rows.put_in_place()
    rows.write({0: 4.0})
    rows.put_in_place()
    np.testing.assert_array_equal(ring[:, 0], [1, -1, 3, 4])


def test_what_waits_is_bounded_in_bytes():
    rows = HostRing(np.zeros((64, 1), np.float32), np.zeros((), np.int32), 0.0, float)
    made: list[int] = []

    def make(sources: list[int]) -> Iterator[Any]:
        made.append(len(sources))
        return ([[i], {0: float(source)}] for i, source in enumerate(sources))

    for step in range(10):
        rows.write_later(make, step, HostRing.MOST_BYTES // 4)
    assert made == [4, 4]
