"""Columns of a row that are made of several cells, and sums that several tensors share."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from trainsanity import backends
from trainsanity.backends.backend import HOST_OPS, OnHost, root
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
        written.write({"root": OnHost(root, [NOTHING])})
        written.write({"root": OnHost(root, [9.0])})
        np.testing.assert_array_equal(reader.read(whole=True).columns["root"], [np.nan, 3.0])

    def test_what_one_trace_makes_and_another_measures_is_one_column(self) -> None:
        written, reader = tape()
        written.write({"a": OnHost(root, [16.0]), "b": 1.0})
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
        written.flush({"loss": OnHost(root, [4.0]), "seen": 1.0})
        written.write({"after": 1.0})
        stale = np.asarray(written.pending.value)
        written.flush({"loss": OnHost(root, [9.0]), "seen": 2.0})
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

    def test_many_tensors_of_many_sizes(self) -> None:
        import jax

        from trainsanity.backends.jax_reductions import in_loops

        sums, largest = self.tensors(), [-np.abs(t) for t in self.tensors()]
        found_sums, found_largest = jax.jit(in_loops)(sums, largest)
        np.testing.assert_allclose(
            found_sums, [t.sum(dtype="float64") for t in sums], rtol=1e-4, atol=2e-3
        )
        np.testing.assert_array_equal(found_largest, [t.max() for t in largest])

    def test_not_a_number_stays_what_it_is(self) -> None:
        from trainsanity.backends.jax_reductions import in_loops

        odd = np.array([1.0, np.nan, 2.0], "float32")
        (total,), (most, other) = in_loops([odd], [odd, -np.ones(900, "float32")])
        assert np.isnan(total)
        assert np.isnan(most)
        assert float(other) == -1.0

    def test_small_tensors_share_a_loop(self) -> None:
        import jax

        from trainsanity.backends.jax_reductions import in_loops

        few = [np.ones(size, "float32") for size in (1, 4, 30, 512, 512)]
        assert str(jax.make_jaxpr(in_loops)(few, few)).count("reduce[") == 1
        large = [np.ones(size, "float32") for size in (16_384, 16)]  # would be filled up for long
        assert str(jax.make_jaxpr(in_loops)(large, [])).count("reduce[") == 2

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


@only_jax
def test_what_has_its_turn_may_depend_on_the_weights() -> None:
    """As sample weights that a step makes of the model's own outputs."""
    import jax

    backend = backends.active()

    def loss(weight: Any) -> Any:
        backend.in_turn(weight * 2.0, np.float32(GAP))
        return weight * weight

    assert float(jax.jit(jax.grad(loss))(3.0)) == 6.0
