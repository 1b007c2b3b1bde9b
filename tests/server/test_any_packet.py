"""Whatever a client may send: if it is taken in, it can be judged, packed, read and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stage import Stage

from trainsanity import wire
from trainsanity.wire import MAX_STEP, Audit, Block, Packet, Signal
from trainsanity_server.api.shapes import plain
from trainsanity_server.services.rulebook import Rulebook
from trainsanity_server.storage.database import Database
from trainsanity_server.storage.ids import new_id

printable = st.text(min_size=1, max_size=8).filter(str.isprintable)
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
facts = st.dictionaries(st.text(max_size=8), documents, max_size=3)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    names = draw(st.lists(st.sampled_from(["a/b", "c/d", "loss/reported", "é/☃"]), unique=True))
    gaps = draw(st.lists(st.sampled_from([1, 1, 1, 7, 2**40]), max_size=12))
    first = draw(st.sampled_from([0, 1, 5, 2**52]))
    steps = first + np.cumsum([0, *gaps])[: len(gaps)].astype(np.int64)
    dtype = draw(st.sampled_from(["<f4", "<f8"]))
    elements = st.floats(width=32 if dtype == "<f4" else 64, allow_nan=True, allow_infinity=True)
    return Block(
        tuple(names), steps, draw(hnp.arrays(dtype, (len(names), len(steps)), elements=elements))
    )


headers = st.fixed_dictionaries(
    {},
    optional={
        "project": st.text(max_size=5),
        "name": st.text(max_size=300),
        "tags": st.lists(documents, max_size=3),
        "expect": facts,
        "config": facts,
        "environment": facts,
        "started_at": st.floats(0, 3e10),
        "of the future": documents,
    },
)
packets = st.builds(
    Packet,
    run_id=st.just(""),
    seq=st.just(0),
    time=st.floats(0, 3e10),
    step=st.integers(0, MAX_STEP),
    state=st.sampled_from(wire.STATES),
    silent_after=st.floats(0, 1e6),
    run=st.none() | headers,
    signals=st.lists(
        st.builds(Signal, printable, st.text(max_size=5), st.text(max_size=5)), max_size=2
    ),
    blocks=st.lists(blocks(), max_size=3),
    audits=st.lists(st.builds(Audit, printable, st.integers(0, MAX_STEP), facts), max_size=2),
)


@pytest.fixture
def world(database: Database) -> Iterator[Stage]:
    """With all the real rules."""
    with Stage(database, rules=Rulebook()) as stage:
        yield stage


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sent=st.lists(packets, min_size=1, max_size=4))
def test_it_can_be_judged_packed_read_and_deleted(world, sent):
    run_id = new_id()
    samples: dict[str, int] = {}
    for seq, packet in enumerate(sent):
        world.send(replace(packet, run_id=run_id, seq=seq))
        world.judge_all()
        for block in packet.blocks:
            for name in block.names:
                samples[name] = samples.get(name, 0) + len(block.steps)
    run = world.runs.get(run_id)
    assert run.settled == (run.state != "running")
    assert run.damage == ""
    known = {signal.name: signal for signal in world.signals.known(run_id)}
    for name, count in samples.items():
        if count:
            assert 0 < known[name].count <= count
            (series,) = world.signals.data(run_id, [name], points=3).series
            assert series.count in (count, known[name].count)
    assert plain(run.config) == plain(world.runs.page(q=run_id).runs[0].config)
    world.runs.verdicts(run_id)
    world.deletion.delete(run_id)
    while world.deletion.step() == 0.0:
        pass
