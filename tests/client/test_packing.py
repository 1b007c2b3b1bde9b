"""Whatever is measured comes out of the packets as it went in, in packets of bounded size."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsanity import wire
from trainsanity.packing import Load, Pending
from trainsanity.wire import Audit, Block, Packet, Signal

RUN = "01a1fb97-f0e9-7e2c-92ec-36dbc0880b6c"


def block(names: tuple[str, ...], steps: list[int], dtype: str = "f4") -> Block:
    values = np.array([[step * 10 + i for step in steps] for i in range(len(names))], dtype)
    return Block(names, np.array(steps, np.int64), values)


def loads(*blocks: Block, most: int = 10_000) -> list[Load]:
    pending = Pending()
    for each in blocks:
        pending.add_block(each)
    return list(pending.loads(most))


def size(load: Load) -> int:
    return len(
        wire.encode(
            Packet(RUN, 0, 0.0, signals=load.signals, blocks=load.blocks, audits=load.audits)
        )
    )


def test_joins_samples_of_the_same_signals() -> None:
    (load,) = loads(block(("a", "b"), [1]), block(("c",), [1]), block(("a", "b"), [2, 5]))

    joined, other = load.blocks
    assert joined.names == ("a", "b")
    assert joined.steps.tolist() == [1, 2, 5]
    assert joined.values.tolist() == [[10, 20, 50], [11, 21, 51]]
    assert other.names == ("c",)


def test_does_not_join_when_steps_go_back() -> None:
    """A run that resumes from an older checkpoint makes a second attempt, and both are kept."""
    (load,) = loads(block(("a",), [7, 8]), block(("a",), [8]), block(("a",), [9]))
    assert [each.steps.tolist() for each in load.blocks] == [[7, 8], [8, 9]]


def test_joins_without_losing_precision() -> None:
    (load,) = loads(block(("a",), [1], "f4"), Block(("a",), np.array([2]), np.array([[0.1]])))
    assert load.blocks[0].values.tolist() == [[10.0, 0.1]]


def test_cuts_what_is_too_large_along_steps_and_names() -> None:
    wide = block(tuple(f"signal-{i:04}" for i in range(200)), [1])
    long = block(("a",), list(range(2000)))

    found = loads(wide, long, most=1000)

    assert all(size(load) <= 1000 + 200 for load in found)
    assert [
        name for load in found for each in load.blocks for name in each.names if name != "a"
    ] == list(wide.names)
    steps = [
        s for load in found for each in load.blocks if each.names == ("a",) for s in each.steps
    ]
    assert steps == list(range(2000))


def test_sends_a_large_audit_by_itself() -> None:
    pending = Pending()
    pending.add_signal(Signal("a/b", "s"))
    pending.add_audit(Audit("model", 0, {"layers": "x" * 5000}), 5020)
    pending.add_audit(Audit("fit", 0, {}), 30)

    found = list(pending.loads(1000))

    assert [[a.name for a in load.audits] for load in found] == [[], ["model"], ["fit"]]


def test_has_nothing_to_send_at_first() -> None:
    assert not Pending()
    assert list(Pending().loads(1000)) == []


calls = st.lists(
    st.tuples(
        st.sampled_from([("a",), ("b", "c"), tuple(f"n{i}" for i in range(30))]),
        st.lists(st.integers(0, 1000), min_size=1, max_size=40, unique=True).map(sorted),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(calls, st.integers(400, 5000))
def test_loses_and_doubles_nothing(
    calls: list[tuple[tuple[str, ...], list[int]]], most: int
) -> None:
    """Every sample of every signal, in the order of its arrival, in loads of bounded size."""
    pending = Pending()
    for names, steps in calls:
        pending.add_block(block(names, steps))
    found = list(pending.loads(most))

    assert pending.points == sum(len(names) * len(steps) for names, steps in calls)
    assert sum(load.points for load in found) == pending.points
    for load in found:
        assert size(load) <= load.size + 120
        assert load.size <= most or len(load.blocks) == 1
    for name in {name for names, _ in calls for name in names}:
        given_steps = [s for names, steps in calls if name in names for s in steps]
        blocks = [b for load in found for b in load.blocks if name in b.names]
        assert [int(s) for b in blocks for s in b.steps] == given_steps
        for b in blocks:
            index = int(name[1:]) if name[1:] else "abc".index(name) - (name != "a")
            assert b.values[b.names.index(name)].tolist() == [s * 10 + index for s in b.steps]


def test_never_estimates_too_little() -> None:
    pending = Pending()
    pending.add_signal(Signal("ключ/значение", "единица", "подпись" * 10))
    pending.add_block(block(("ключ",), [1]))
    (load,) = pending.loads(10_000)
    assert size(load) <= load.size + 120


@given(st.text(min_size=0, max_size=400), st.text(max_size=400))
def test_any_text_can_name_a_signal_and_two_texts_name_two(one: str, other: str) -> None:
    names = [wire.as_name(text) for text in (one, other)]
    packet = Packet(RUN, 0, 0.0, signals=tuple(Signal(name) for name in names))
    assert [signal.name for signal in wire.decode(wire.encode(packet)).signals] == names
    assert (names[0] == names[1]) == (one == other)


def test_a_name_that_is_cut_keeps_its_witness() -> None:
    assert wire.as_name("accuracy/reported") == "accuracy/reported"
    cut = wire.as_name("a" * 300 + "/reported")
    assert cut.endswith("/reported")
    assert len(cut) == wire.MAX_NAME_LENGTH
    assert wire.as_name("two\nlines/batch").endswith("/batch")


def test_a_name_that_is_no_text_in_utf8_is_spelled_out() -> None:
    packet = Packet(RUN, 0, 0.0, audits=[Audit("model", 0, {"name": "half \udcff"})])
    (audit,) = wire.decode(wire.encode(packet)).audits
    assert audit.facts["name"] == r"half \udcff"
