"""Columns of a row that are made of several cells, and sums that several tensors share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.watched import offline_callback, run_of

from trainsanity import backends
from trainsanity.backends.backend import HOST_OPS, OnHost, norm_of
from trainsanity.tape import GAP, NOTHING, Tape, TapeReader

only_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="what XLA compiles for long is JAX's step"
)


def tape() -> tuple[Tape, TapeReader]:
    backend = backends.active()
    made = Tape(backend, depth=8, width=16)
    return made, TapeReader(made, backend)


def quotient(ops: Any, part: Any, whole: Any) -> Any:
    return ops.divide_no_nan(part, whole)


@only_jax
class TestOnHost:
    def test_makes_a_column_of_its_cells(self) -> None:
        written, reader = tape()
        for part in (1.0, 6.0, np.nan):
            written.write({"share": OnHost(quotient, [np.float32(part), 4.0]), "plain": 2.0})
        columns = reader.read(whole=True).columns
        assert sorted(columns) == ["plain", "share"]
        np.testing.assert_array_equal(columns["share"], [0.25, 1.5, np.nan])

    def test_nothing_in_one_cell_makes_nothing(self) -> None:
        written, reader = tape()
        written.write({"norm_of": OnHost(norm_of, [NOTHING])})
        written.write({"norm_of": OnHost(norm_of, [9.0])})
        np.testing.assert_array_equal(reader.read(whole=True).columns["norm_of"], [np.nan, 3.0])

    def test_what_one_trace_makes_and_another_measures_is_one_column(self) -> None:
        written, reader = tape()
        written.write({"a": OnHost(norm_of, [16.0]), "b": 1.0})
        written.write({"a": 5.0, "b": 1.0})
        written.write({"a": OnHost(quotient, [3.0, 2.0]), "b": 1.0})
        written.write({"b": 1.0})
        rows = reader.read(whole=True)
        np.testing.assert_array_equal(rows.columns["a"], [4.0, 5.0, 1.5, np.nan])
        assert rows.gaps["a"].tolist() == [False, False, False, True]
        assert "b" not in rows.gaps

    def test_a_row_without_one_of_the_cells_has_no_column(self) -> None:
        written, reader = tape()
        written.write({"a": OnHost(quotient, [3.0, 2.0])})
        written.write({"a": OnHost(quotient, [3.0, GAP])})
        assert reader.read(whole=True).gaps["a"].tolist() == [False, True]

    def test_what_was_lost_on_the_way_out_of_a_gradient_is_not_that_of_the_step_before(
        self,
    ) -> None:
        written, reader = tape()
        written.flush({"loss": OnHost(norm_of, [4.0]), "seen": 1.0})
        written.write({"after": 1.0})
        stale = np.asarray(written.pending.value)
        written.flush({"loss": OnHost(norm_of, [9.0]), "seen": 2.0})
        written.pending.assign(stale)  # as where the user's step drops what the metrics became
        written.write({"after": 2.0})
        columns = reader.read(whole=True).columns
        np.testing.assert_array_equal(columns["loss"], [2.0, np.nan])
        np.testing.assert_array_equal(columns["seen"], [1.0, np.nan])
        np.testing.assert_array_equal(columns["after"], [1.0, 2.0])


def test_the_host_divides_by_nothing_without_a_warning() -> None:
    found = HOST_OPS.divide_no_nan(np.array([1.0, 0.0, 3.0]), np.array([0.0, 0.0, 2.0]))
    np.testing.assert_array_equal(found, [0.0, 0.0, 1.5])


@only_jax
class TestLoops:
    @staticmethod
    def tensors() -> list[np.ndarray[Any, Any]]:
        rng = np.random.default_rng(0)
        shapes = [(), (1,), (7,), (32, 32), (16, 4, 8), (16_384,), (5_000,)] * 6
        return [rng.normal(size=shape).astype("float32") for shape in shapes]

    @staticmethod
    def reduced(tensors: list[np.ndarray[Any, Any]], kind: str) -> list[float]:
        import jax

        from trainsanity.backends.jax_reductions import Kind, Reduced, in_loops

        def all_of(tensors: list[Any]) -> list[Any]:
            return in_loops([Reduced(Kind[kind], tensor) for tensor in tensors])

        # What `EXACT` gives are a sum and what is missing in it.
        return [float(sum(map(np.float64, found))[0]) for found in jax.jit(all_of)(tensors)]

    def test_many_tensors_of_many_sizes(self) -> None:
        tensors = self.tensors()
        sums = [t.sum(dtype="float64") for t in tensors]
        np.testing.assert_allclose(self.reduced(tensors, "SUM"), sums, rtol=1e-4, atol=2e-3)
        np.testing.assert_allclose(self.reduced(tensors, "EXACT"), sums, rtol=1e-6, atol=1e-6)
        most = [t.max() for t in tensors]
        np.testing.assert_array_equal(self.reduced(tensors, "LARGEST"), most)

    def test_all_kinds_in_one_loop(self) -> None:
        from trainsanity.backends.jax_reductions import Kind, Reduced, in_loops

        vector = np.array([3.0, -5.0, 1.0], "float32")
        kinds = (Kind.LARGEST, Kind.EXACT, Kind.SUM, Kind.EXACT)
        found = in_loops([Reduced(kind, vector) for kind in kinds])
        assert [[float(n[0]) for n in numbers] for numbers in found] == [
            [3.0],
            [-1.0, 0.0],
            [-1.0],
            [-1.0, 0.0],
        ]

    def test_not_a_number_stays_what_it_is(self) -> None:
        odd = np.array([1.0, np.nan, 2.0], "float32")
        assert np.isnan(self.reduced([odd], "SUM")).all()
        most = self.reduced([odd, -np.ones(900, "float32")], "LARGEST")
        np.testing.assert_array_equal(most, [np.nan, -1.0])

    def test_small_tensors_share_a_loop(self) -> None:
        import jax

        from trainsanity.backends.jax_reductions import Kind, Reduced, in_loops

        def loops_for(*sizes: int) -> int:
            def sums(tensors: list[Any]) -> list[Any]:
                return in_loops([Reduced(Kind.SUM, tensor) for tensor in tensors])

            made = jax.make_jaxpr(sums)([np.ones(size, "float32") for size in sizes])
            return str(made).count("reduce[")

        assert loops_for(1, 4, 30, 512, 512) == 1
        assert loops_for(16_384, 16, 16) == 2  # would be filled up for long

    def test_whoever_asks_early_gets_the_number(self) -> None:
        backend = backends.active()
        least, most = backend.extremes(keras.ops.convert_to_tensor([3.0, -2.0, 5.0]))
        (share,) = backend.shares(
            [keras.ops.array([True, False, False])], [keras.ops.array([True, True, False])]
        )
        mean, deviation = backend.moments(keras.ops.convert_to_tensor([1.0, 3.0]))
        for found, expected in (
            (least, -2.0),
            (most, 5.0),
            (share, 0.5),
            (mean, 2.0),
            (deviation, 1.0),
            (backend.nonfinite([keras.ops.convert_to_tensor([np.nan, 1.0, np.inf])]), 2.0),
        ):
            assert float(keras.ops.convert_to_tensor(found)) == expected
            assert float(1.0 + 2.0 * found) == 1.0 + 2.0 * expected


def value_of(column: Any) -> float:
    """Of a column that no row was made of yet."""
    found = keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(column))
    return float(np.asarray(found).reshape(()))


@only_jax
def test_a_total_loses_no_roundings() -> None:
    """Equal numbers are the worst case: each addition rounds to the same side."""
    values = np.full(2_048, 0.1, "float32")
    total = value_of(backends.active().total(keras.ops.convert_to_tensor(values)))
    assert total == pytest.approx(values.sum(dtype="float64"), rel=1e-7)


@pytest.mark.parametrize("odd", [np.inf, -np.inf])
def test_a_total_may_be_infinite(odd: float) -> None:
    backend = backends.active()
    assert value_of(backend.total(keras.ops.convert_to_tensor([1.0, odd, 2.0]))) == odd


def test_columns_are_made_of_columns() -> None:
    backend = backends.active()
    total = backend.total(keras.ops.convert_to_tensor([1.0, 2.0, 3.0]))
    share = backend.column(quotient, [total, keras.ops.convert_to_tensor(4.0)])
    assert value_of(backend.column(norm_of, [share, total, 1.75])) == pytest.approx(3.041381)


def test_sizes_of_gradients_of_all_shapes() -> None:
    backend = backends.active()
    rng = np.random.default_rng(1)
    shapes = [(), (3,), (40, 2), (100, 200), (16_384,), (0,), (8, 4, 4)]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    gradients = [keras.ops.convert_to_tensor(a) for a in arrays]
    which = [a.size > 0 and place != 2 for place, a in enumerate(arrays)]
    found = backend.sizes(gradients, which, xla=False)
    squares = sum(float((a.astype("float64") ** 2).sum()) for a in arrays)
    assert sum(map(value_of, found.squares)) == pytest.approx(squares, rel=1e-5)
    assert sum(map(value_of, found.nonfinite)) == 0.0
    assert [n is not None for n in found.largest] == which
    largest = [np.abs(a).max() for a, wanted in zip(arrays, which, strict=True) if wanted]
    assert [value_of(n) for n in found.largest if n is not None] == pytest.approx(largest)


def test_of_each_gradient_by_itself() -> None:
    backend = backends.active()
    arrays = [np.arange(-size, 0, dtype="float32") for size in (3, 20_000, 1, 40)]
    gradients = [keras.ops.convert_to_tensor(a) for a in arrays]
    squares = [float((a.astype("float64") ** 2).sum()) for a in arrays]
    found = keras.ops.stack(backend.square_sums(gradients))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), squares, rtol=1e-5)
    found = keras.ops.stack(backend.largest(gradients))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), [3.0, 20_000.0, 1.0, 40.0])


def test_says_what_finds_no_place_on_the_tape() -> None:
    backend = backends.active()
    narrow = Tape(backend, depth=4, width=2)
    narrow.write({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
    rows = TapeReader(narrow, backend).read(whole=True)
    assert set(rows.columns) == {"a", "b"}
    assert rows.without_place == {"c", "d"}


def test_many_metrics_of_weighted_and_masked_sequences_find_their_place(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.Dense(3, activation="softmax")]
    )
    names = [f"accuracy_{i}" for i in range(12)]
    metrics, weighted = (
        [keras.metrics.SparseCategoricalAccuracy(name=f"{kind}{n}") for n in names] for kind in "mw"
    )
    loss = "sparse_categorical_crossentropy"
    model.compile("adam", loss, metrics=metrics, weighted_metrics=weighted)
    ids = np.random.default_rng(0).integers(0, 9, (8, 5))
    callback = offline_callback(tmp_path)
    model.fit(
        ids, ids % 3, sample_weight=np.ones((8, 5)), batch_size=4, verbose=0, callbacks=[callback]
    )
    run = run_of(callback)
    assert "tape" not in run.audits("columns")[-1].facts["not_testable"]
    for name in names:
        assert len(run.signal(f"w{name}/recomputed")) == 2


def test_sizes_count_what_is_not_finite() -> None:
    backend = backends.active()
    odd = np.zeros(20_000, "float32")
    odd[[5, 19_999]] = np.nan, np.inf
    gradients = [keras.ops.convert_to_tensor(a) for a in (odd, odd[:6], odd[:3])]
    found = backend.sizes(gradients, [True] * 3, xla=False)
    assert sum(map(value_of, found.nonfinite)) == 3.0


def test_vectors_one_behind_the_other_are_bit_for_bit_the_same() -> None:
    vectors = [np.array(v, "float32") for v in ([-0.0, np.nan], [np.inf], [1.0, -2.5, 1e-40])]

    def joined(*vectors: Any) -> Any:
        return backends.active().joined([*vectors])

    if keras.backend.backend() == "jax":
        import jax

        joined = jax.jit(joined)
    found = keras.ops.convert_to_numpy(joined(*map(keras.ops.convert_to_tensor, vectors)))
    np.testing.assert_array_equal(found.view("uint32"), np.concatenate(vectors).view("uint32"))


@only_jax
def test_what_has_its_turn_may_depend_on_the_weights() -> None:
    """As sample weights that a step makes of the model's own outputs."""
    import jax

    backend = backends.active()

    def loss(weight: Any) -> Any:
        backend.in_turn(weight * 2.0, np.float32(GAP))
        return weight * weight

    assert float(jax.jit(jax.grad(loss))(3.0)) == 6.0
