"""What a `PointStore` must do, whatever engine is below; and how ours packs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from cast import Training
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sqlalchemy import func, select, update
from stage import Clock, Stage
from tsdownsample import MinMaxDownsampler

from trainsanity.wire import MAX_STEP, Block, Packet
from trainsanity_server.services.replay import windows
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.storage import buckets, chunk, compaction, cover, curves, log, pyramid
from trainsanity_server.storage.blocks import gathered
from trainsanity_server.storage.chunk import DamagedError
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.digests import digest_of
from trainsanity_server.storage.models import ChunkRow, GroupRow, PacketRow, RunRow
from trainsanity_server.storage.points import Overview, PointStore, Series

NAMES = ("loss/reported", "accuracy/reported", "loss/recomputed")


@pytest.fixture
def stage(database: Database, clock: Clock) -> Iterator[Stage]:
    """Without rules: they have their own tests."""
    with Stage(database, clock, rules=Rulebook([])) as stage:
        yield stage


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pyramid of four levels out of a few thousand samples."""
    sizes = {"CHUNK_ROWS": 64, "BUCKET_ROWS": 8, "FAN_OUT": 4, "RAW_ROWS": 128}
    for module in (cover, compaction, curves, pyramid):
        for name in sizes.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, sizes[name])


def noise(rows: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(NAMES), rows)).astype("f4")


def store(stage: Stage, values: np.ndarray, *, rows: int = 50, judge_every: int = 3) -> Training:
    """Sends columns in packets of `rows` steps; all but the last few end up in chunks."""
    run = Training()
    for i, start in enumerate(range(0, values.shape[1], rows)):
        columns = dict(zip(NAMES, values[:, start : start + rows], strict=True))
        stage.send(run.packet(dtype=values.dtype.str[1:], **columns))
        if i % judge_every == judge_every - 1:
            stage.judge_all()
            while compaction.compact(stage.database, run.id):
                pass
    return run


def read(
    stage: Stage,
    run: Training,
    names=NAMES[:1],
    first: int = 0,
    last: int = MAX_STEP,
    points: int = 100,
) -> Overview:
    points_store: PointStore = stage.points
    return points_store.overview(run.id, names, first, last, points)


def only(overview: Overview) -> Series:
    (series,) = overview.series
    assert overview.damage == []
    return series


# The contract


def test_few_samples_come_as_they_are(stage):
    values = noise(80)
    run = store(stage, values)
    series = only(read(stage, run))
    assert series.steps.tolist() == list(range(1, 81))
    np.testing.assert_array_equal(series.values, values[0])


@pytest.mark.parametrize("rows", [3, 50, 1000])
def test_how_packets_were_cut_makes_no_difference(stage, small, rows):
    values = noise(1000)
    run = store(stage, values, rows=rows, judge_every=max(1, 200 // rows))
    series = only(read(stage, run, points=1000))
    np.testing.assert_array_equal(series.values, values[0])
    series = only(read(stage, run, points=40))
    assert series.buckets.rows.sum() == 1000
    assert series.buckets.min.min() == values[0].min()
    assert series.buckets.max.max() == values[0].max()


def test_many_samples_come_as_summaries(stage, small):
    values = noise(3000)
    run = store(stage, values)
    series = only(read(stage, run, points=100))
    found = series.buckets
    assert 10 <= len(found) <= 50
    assert (found.rows.sum(), series.count) == (3000, 3000)
    assert found.first_step[0] == 1
    assert found.last_step[-1] == 3000
    assert (found.first_step[1:] > found.last_step[:-1]).all()
    np.testing.assert_allclose(found.sum.sum(), values[0].astype("f8").sum(), rtol=1e-9)
    for i in range(len(found)):
        part = values[0, found.first_step[i] - 1 : found.last_step[i]]
        assert (found.min[0, i], found.max[0, i]) == (part.min(), part.max())
        assert (found.first[0, i], found.last[0, i]) == (part[0], part[-1])
        assert found.mean[0, i] == pytest.approx(part.mean(), abs=1e-6)


def test_a_spike_of_one_step_is_seen_at_every_zoom(stage, small):
    values = noise(3000)
    spikes = [1, 64, 65, 1024, 2049, 2995, 3000]
    values[0, np.array(spikes) - 1] = 1000.0
    run = store(stage, values)
    for at, width, points in itertools.product(spikes, (3000, 700, 130, 20), (4, 100)):
        first = max(1, at - width // 2)
        series = only(read(stage, run, first=first, last=first + width, points=points))
        top = series.values if series.values is not None else series.buckets.max
        assert top.max() == 1000.0


def test_a_range_holds_what_it_should_and_no_more(stage, small):
    values = noise(3000)
    run = store(stage, values)
    ranges = [(1, 3000), (700, 2300), (65, 1024), (2990, 4000), (64, 64)]
    for (first, last), points in itertools.product(ranges, (10, 100, 5000)):
        series = only(read(stage, run, first=first, last=last, points=points))
        inside = values[0, first - 1 : min(last, 3000)]
        assert series.count == len(inside)
        if series.values is not None:
            np.testing.assert_array_equal(series.values, inside)
        else:
            assert len(inside) > points
            assert series.buckets.rows.sum() == len(inside)
            assert series.buckets.min.min() == inside.min()
            assert series.buckets.max.max() == inside.max()
            assert series.buckets.first[0, 0] == inside[0]
            assert series.buckets.last[0, -1] == inside[-1]


def test_nan_and_infinities_are_data(stage, small):
    values = noise(600)
    values[0, 100] = np.nan
    values[0, 200] = np.inf
    values[0, 201] = -np.inf
    run = store(stage, values)
    series = only(read(stage, run, points=1000))
    np.testing.assert_array_equal(series.values, values[0])
    found = only(read(stage, run, points=20)).buckets
    assert (found.nan.sum(), found.inf.sum()) == (1, 2)
    finite = values[0][np.isfinite(values[0])]
    assert (found.min.min(), found.max.max()) == (finite.min(), finite.max())
    assert np.isfinite(found.mean).all()


def test_a_stretch_without_a_finite_sample_has_no_extreme(stage, small):
    values = noise(600)
    values[0, :320] = np.nan
    found = only(read(stage, store(stage, values), points=20)).buckets
    assert np.isnan(found.min[0, 0])
    assert np.isnan(found.mean[0, 0])
    assert found.max[0, -1] == values[0, found.first_step[-1] - 1 :].max()


def test_a_sample_of_float64_comes_back_in_full(stage):
    values = noise(200).astype("f8") + 1e-12
    series = only(read(stage, store(stage, values), points=1000))
    np.testing.assert_array_equal(series.values, values[0])


def test_signals_may_come_in_changing_company(stage, small):
    """A metric that appears later starts a new group; the old signals go on in it."""
    run = Training()
    loss = noise(400)[0]
    for i in range(0, 400, 50):
        columns = {"loss/reported": loss[i : i + 50]}
        if i >= 150:
            columns["late/reported"] = np.ones(50)
        stage.send(run.packet(**columns))
        stage.judge_all()
        compaction.compact(stage.database, run.id)
    overview = read(stage, run, ["loss/reported", "late/reported"], points=1000)
    np.testing.assert_array_equal(overview.series[0].values, loss)
    assert overview.series[1].steps.tolist() == list(range(151, 401))
    thin = read(stage, run, ["loss/reported"], points=20).series[0].buckets
    assert (thin.rows.sum(), thin.max.max()) == (400, loss.max())


def test_of_a_run_that_went_back_the_newest_is_drawn(stage, small):
    """Both attempts are kept."""
    run = Training()
    stage.play([run.packet(loss__reported=np.zeros(100))])
    run.step = 60
    stage.play([run.packet(loss__reported=np.ones(100))])
    compaction.compact(stage.database, run.id)
    series = only(read(stage, run, points=1000))
    assert series.steps.tolist() == list(range(1, 161))
    assert series.values.tolist() == [0.0] * 60 + [1.0] * 100
    assert only(read(stage, run, points=4)).buckets.rows.sum() == 200
    with stage.database.read() as session:
        assert session.scalar(select(func.count()).select_from(GroupRow)) == 2


def test_steps_may_have_gaps(stage, small):
    run = Training()
    steps = np.arange(300) * 1000 + 5
    stage.play([Packet(run.id, 0, 1.0, blocks=[Block(("a/b",), steps, noise(300)[:1])])])
    compaction.compact(stage.database, run.id)
    series = only(read(stage, run, ["a/b"], points=1000))
    assert series.steps.tolist() == steps.tolist()
    assert only(read(stage, run, ["a/b"], 1000, 9000, points=1000)).count == 8


def test_a_chart_keeps_little_in_memory_while_much_waits(stage, small, monkeypatch):
    """A judge that lags behind must not make charts expensive."""
    monkeypatch.setattr(log.read_tail, "__kwdefaults__", {"most_bytes": 5000})
    values = noise(3000)
    run = store(stage, values, judge_every=10**6)
    kept = []
    monkeypatch.setattr(
        curves.Curves,
        "_sum_up",
        lambda self, sum_up=curves.Curves._sum_up: (
            sum_up(self),
            kept.append(sum(len(s) for p in self._pieces.values() for s, _ in p.blocks)),
        ),
    )
    series = only(read(stage, run, points=40))
    assert len(kept) > 5
    assert max(kept) < 1000
    assert series.count == series.buckets.rows.sum() == 3000
    assert series.buckets.max.max() == values[0].max()


def test_an_unknown_signal_has_no_samples(stage):
    series = only(read(stage, store(stage, noise(50)), ["no/such"]))
    assert (series.count, len(series.steps)) == (0, 0)


def test_the_tail_gives_packets_from_one_on(stage):
    run = Training()
    for i in range(5):
        stage.send(run.packet(loss__reported=[float(i)]))
    tail = stage.points.tail(run.id, 2, limit=2)
    assert [p.seq for p in tail.packets] == [2, 3]
    assert (tail.next_seq, tail.damage) == (4, [])


def test_the_tail_is_bounded_in_bytes_but_gives_at_least_one(stage, monkeypatch):
    monkeypatch.setattr(log.read_tail, "__kwdefaults__", {"most_bytes": 500})
    run = Training()
    for _ in range(3):
        stage.send(run.packet(loss__reported=np.zeros(200)))
    assert stage.points.tail(run.id, 0, limit=10).next_seq == 1


def test_the_whole_run_can_be_read_in_windows(stage, small):
    values = noise(1000)
    run = store(stage, values)
    pieces = gathered(b for w in windows(stage.database, stage.points, run.id) for b in w.blocks)
    assert [p.names for p in pieces] == [NAMES]
    np.testing.assert_array_equal(pieces[0].values, values)


def test_windows_hold_little_at_a_time(stage, small):
    run = store(stage, noise(1000))
    sizes = [b.values.size for w in windows(stage.database, stage.points, run.id) for b in w.blocks]
    assert max(sizes) <= 3 * 150


def test_a_deleted_run_leaves_nothing_in_small_steps(stage, small):
    other = store(stage, noise(100))
    run = store(stage, noise(1000))
    stage.deletion.delete(run.id)
    steps = 0
    while stage.points.delete(run.id, limit=3):
        steps += 1
    assert steps > 3
    with stage.database.read() as session:
        for model in (ChunkRow, GroupRow, PacketRow):
            found = set(session.scalars(select(model.run_id)))
            assert run.id not in found
    assert only(read(stage, other)).count == 100


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        "f8",
        st.tuples(st.integers(1, 3), st.integers(1, 300)),
        elements=st.floats(width=64, allow_nan=True, allow_infinity=True),
    ),
    width=st.integers(1, 40),
    most=st.integers(1, 40),
)
def test_no_thinning_loses_an_extreme(values, width, most):
    steps = np.arange(values.shape[1], dtype=np.int64) * 3 + 1
    thin = buckets.thinned(buckets.from_rows(steps, values, width), most)
    assert len(thin) <= most
    assert thin.rows.sum() == values.shape[1]
    for i, row in enumerate(values):
        finite = row[np.isfinite(row)]
        assert thin.nan[i].sum() == np.isnan(row).sum()
        assert thin.inf[i].sum() == np.isinf(row).sum()
        assert (thin.first[i, 0], thin.last[i, -1]) == (
            pytest.approx(row[0], nan_ok=True),
            pytest.approx(row[-1], nan_ok=True),
        )
        if len(finite):
            assert (np.nanmin(thin.min[i]), np.nanmax(thin.max[i])) == (finite.min(), finite.max())
        else:
            assert np.isnan(thin.min[i]).all()


def test_our_summaries_agree_with_tsdownsample():
    """An independent library picks the same least and greatest samples."""
    values = noise(10_000)[0]
    own = buckets.thinned(buckets.from_rows(np.arange(10_000), values[None], 10), 50)
    picked = MinMaxDownsampler().downsample(values, n_out=100)
    theirs = np.sort(values[picked].reshape(50, 2), axis=1)
    assert len(own) == 50
    np.testing.assert_array_equal(own.min[0], theirs[:, 0])
    np.testing.assert_array_equal(own.max[0], theirs[:, 1])


# How samples are packed


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        st.sampled_from(["f4", "f8"]),
        st.tuples(st.integers(1, 4), st.integers(1, 200)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    ),
    start=st.integers(0, 2**52),
    gap=st.integers(1, 1000),
)
def test_a_chunk_gives_back_what_was_packed(values, start, gap):
    steps = start + np.arange(values.shape[1], dtype=np.int64) * gap
    packed = chunk.pack_rows(steps, values)
    back_steps, back = chunk.unpack_rows(packed, range(len(values)))
    np.testing.assert_array_equal(back_steps, steps)
    np.testing.assert_array_equal(back, values)
    _, last = chunk.unpack_rows(packed, [len(values) - 1])
    np.testing.assert_array_equal(last, values[-1:])


def test_a_header_gives_back_what_was_packed():
    values = noise(1000)
    values[1, 5:9] = np.nan
    whole = buckets.from_rows(np.arange(1000), values, 64)
    packed = chunk.pack_header(whole)
    back = chunk.unpack_header(packed, [1])
    for name in ("rows", "first_step", "last_step"):
        np.testing.assert_array_equal(getattr(back, name), getattr(whole, name))
    for name in ("min", "max", "sum", "first", "last", "nan", "inf"):
        np.testing.assert_array_equal(getattr(back, name), getattr(whole, name)[1:2])


def test_noise_costs_less_than_four_bytes_a_sample():
    values = noise(cover.CHUNK_ROWS)
    steps = np.arange(cover.CHUNK_ROWS)
    header = chunk.pack_header(buckets.from_rows(steps, values, cover.BUCKET_ROWS))
    assert (len(chunk.pack_rows(steps, values)) + len(header)) / values.size < 4.0


def test_a_constant_costs_nothing():
    packed = chunk.pack_rows(np.arange(4096), np.full((1, 4096), 0.001))
    assert len(packed) < 400


@pytest.mark.parametrize("at", [0, 5, 9, 14, 30, 60, 400, -1])
def test_each_flipped_bit_is_noticed(at):
    packed = bytearray(chunk.pack_rows(np.arange(500), noise(500)))
    packed[at] ^= 4
    with pytest.raises(DamagedError):
        chunk.unpack_rows(bytes(packed), range(3))


@pytest.mark.parametrize("length", [0, 3, 11, 40, 900])
def test_what_is_cut_off_is_noticed(length):
    rows = np.arange(500)
    packed = chunk.pack_rows(rows, noise(500))
    header = chunk.pack_header(buckets.from_rows(rows, noise(500), 64))
    with pytest.raises(DamagedError):
        chunk.unpack_rows(packed[:length], range(3))
    with pytest.raises(DamagedError):
        chunk.unpack_header(header[:length], range(3))


# Damage


def damage(stage: Stage, column: str, level: int) -> None:
    statement = update(ChunkRow).where(ChunkRow.level == level).values({column: b"rubbish"})
    stage.database.write(lambda s: s.execute(statement))


def test_damaged_samples_are_told_and_the_rest_is_drawn(stage, small):
    values = noise(600)
    run = store(stage, values)
    spoil = update(ChunkRow).where(ChunkRow.first_step == 65).values(data=b"rubbish")
    stage.database.write(lambda s: s.execute(spoil))
    overview = read(stage, run, points=1000, last=128)
    assert overview.series[0].steps.tolist() == list(range(1, 65))
    assert "steps 65 to 128 cannot be read" in overview.damage[0]
    # Their summaries are whole, so a wider view shows them.
    assert only(read(stage, run, points=20)).count == 600


def test_whoever_looks_finds_a_note_of_the_damage(stage, small):
    """The list still works, and the run says what is wrong with it, once."""
    run = store(stage, noise(600))
    damage(stage, "data", 0)
    damage(stage, "header", 0)
    for _ in range(2):
        assert stage.signals.data(run.id, NAMES[:1]).damage
    (shown,) = stage.runs.page().runs
    assert shown.damage.count("steps 65 to 128 cannot be read") == 1
    assert stage.signals.known(run.id)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_damaged_summary_is_made_again_from_what_lies_below(stage, small, level):
    values = noise(3000)
    run = store(stage, values)
    damage(stage, "header", level)
    series = only(read(stage, run, points=30))
    assert series.count == 3000
    assert series.buckets.max.max() == values[0].max()


def test_a_damaged_run_still_grows(stage, small):
    values = noise(140)
    run = store(stage, values, rows=10)
    compaction.compact(stage.database, run.id)
    damage(stage, "data", 0)
    stage.play([run.packet(**dict(zip(NAMES, noise(100), strict=True)))])
    compaction.compact(stage.database, run.id)
    overview = read(stage, run, points=1000, first=141)
    assert overview.series[0].count == 100


# Compaction


def test_packets_go_and_their_digests_stay(stage, small):
    run = store(stage, noise(300))
    with stage.database.read() as session:
        assert session.scalar(select(func.count()).select_from(PacketRow)) == 0
        assert session.scalar(select(RunRow.compacted_seq).where(RunRow.id == run.id)) == 6
        digests = [digest_of(session, run.id, seq) for seq in range(7)]
    assert len(set(digests[:6])) == 6
    assert digests[6] is None


def test_a_packet_that_cannot_be_read_is_kept(stage, small):
    """Whoever repairs it can have it."""
    run = Training()
    for _ in range(3):
        stage.send(run.packet(loss__reported=[1.0, 2.0]))
    spoil = update(PacketRow).where(PacketRow.seq == 1).values(body=b"rubbish")
    stage.database.write(lambda s: s.execute(spoil))
    stage.judge_all()
    compaction.compact(stage.database, run.id)
    with stage.database.read() as session:
        assert session.scalars(select(PacketRow.seq)).all() == [1]
    assert only(read(stage, run, points=1000)).steps.tolist() == [1, 2, 5, 6]


def test_of_two_compactions_at_once_one_wins(stage, small):
    run = Training()
    values = noise(300)
    stage.play([run.packet(loss__reported=values[0])])
    with stage.database.snapshot() as session:
        seen = session.get(RunRow, run.id)

        tail = log.read_tail(session, run.id, 0, limit=1)
        plan = compaction._Plan(0, 1, compaction._packed(session, run.id, tail))
    assert seen.compacted_seq == 0
    for _ in range(2):
        stage.database.write(lambda s: compaction._store(s, run.id, plan))
    np.testing.assert_array_equal(only(read(stage, run, points=1000)).values, values[0])


def test_a_pyramid_has_a_row_for_every_sixteen_below(stage):
    values = noise(4096 * 17)
    run = store(stage, values, rows=4096 * 2, judge_every=1)
    with stage.database.read() as session:
        query = select(ChunkRow.level, func.count(), func.sum(ChunkRow.rows))
        levels = session.execute(query.group_by(ChunkRow.level).order_by(ChunkRow.level)).all()
    assert [tuple(row) for row in levels] == [(0, 17, 4096 * 17), (1, 1, 4096 * 16)]
    assert only(read(stage, run, points=20)).buckets.max.max() == values[0].max()


def test_only_what_was_judged_is_packed(stage, small):
    run = Training()
    stage.send(run.packet(loss__reported=noise(100)[0]))
    assert not compaction.compact(stage.database, run.id)
    with stage.database.read() as session:
        assert session.scalar(select(func.count()).select_from(ChunkRow)) == 0


def test_a_run_that_ended_is_packed_at_once(database):
    with Stage(database, rules=Rulebook([])) as stage:
        run = Training()
        stage.play([run.packet(loss__reported=[1.0]), run.packet(state="finished")])
        with database.read() as session:
            assert session.scalar(select(RunRow.compacted_seq)) == 2
