"""How processes hand in to the first one, turn by turn and without their threads."""

from __future__ import annotations

import math
import uuid
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainsanity import processes
from trainsanity.all_processes import IN_ALL
from trainsanity.backends.backend import MeetingPlace
from trainsanity.boundary import Boundary
from trainsanity.gathering import Gathering
from trainsanity.handing_in import WINDOW, HandingIn
from trainsanity.link import MOST_WAITING, PREFIX, Link
from trainsanity.processes import NoStream
from trainsanity.tape import TapeRows


class FakeStore(dict[str, bytes]):
    """A store of one process that remembers; `is_gone` is what happens when its server dies."""

    is_gone = False

    def check(self, keys: list[str]) -> bool:
        if self.is_gone:
            raise RuntimeError("Failed to recv, got 0 bytes.\nException raised from recvBytes")
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override] # no dict's: a store's
        return self[key]

    def set(self, key: str, value: str | bytes) -> None:
        self[key] = value.encode() if isinstance(value, str) else value

    def delete_key(self, key: str) -> bool:
        return self.pop(key, None) is not None

    @property
    def packets(self) -> list[str]:
        """Keys of packets; the other key names the run."""
        return [key for key in self if "/" in key.removeprefix(PREFIX)]


class Shape(SimpleNamespace):
    """A weight."""

    shape = (2, 3)


def run_of(process: int, count: int = 2, corner: float = 0.5, place: Any = None) -> Any:
    picked = np.array([corner, 1.0])
    backend = SimpleNamespace(
        pick_value=lambda variable, corners: picked,
        process=lambda: process,
        meeting_place=lambda: place,
    )
    model = SimpleNamespace(trainable_variables=[Shape()])
    stream: Any = NoStream() if process else SimpleNamespace(run_id=str(uuid.uuid4()))
    return SimpleNamespace(
        kind="fit",
        model=model,
        backend=backend,
        stream=stream,
        processes=count,
        not_testable={},
    )


def boundary() -> Boundary:
    return Boundary(lambda part, error, text: pytest.fail(text))


def spoken(run: Any, store: FakeStore, most_bytes: float = math.inf) -> Any:
    return run, MeetingPlace(lambda: store, most_bytes), boundary(), lambda: None


def first(store: FakeStore, **facts: Any) -> Gathering:
    run = run_of(0, **facts)
    made = Gathering(*spoken(run, store), run_id=run.stream.run_id, probes=[])
    made._enter(store)
    return made


def second(store: FakeStore, most_bytes: float = math.inf, **facts: Any) -> HandingIn:
    return HandingIn(*spoken(run_of(1, **facts), store, most_bytes), process=1)


def measure(link: Link, *steps: int) -> None:
    sizes = {"batch/size": np.full(len(steps), 4.0)}
    link.add(TapeRows(np.array(steps, np.int64), sizes), 0)


def validate(link: Link, step: int, *, is_known: bool = True) -> None:
    row = TapeRows(np.array([step], np.int64), {"batch/size": np.array([2.0])})
    link.add_pass(row if is_known else None, 0, ["loss"])


def turn(link: Link, store: FakeStore, *, is_last: bool = False) -> bool:
    return link._is_done(store, is_last=is_last)


def sizes(link: Gathering) -> list[float]:
    """Of all batches that were put together since."""
    link._is_over.set()
    name = f"batch/size{IN_ALL}"
    return [size for _, columns in link.together() for size in columns.get(name, [])]


def meet(one: Gathering, other: HandingIn, store: FakeStore) -> None:
    """The greeting, and that it was taken."""
    turn(other, store)
    turn(one, store)


def test_what_the_other_measures_arrives_and_leaves_nothing_behind() -> None:
    store = FakeStore()
    one, other = first(store), second(store)
    meet(one, other, store)
    for link in (one, other):
        measure(link, 1, 2)
        measure(link, 3)
    assert turn(other, store, is_last=True)
    assert turn(one, store, is_last=True)
    assert sizes(one) == [8.0, 8.0, 8.0]
    assert one.why_not() is None
    assert not store.packets


def test_passes_arrive_beside_batches_and_are_counted_for_themselves() -> None:
    store = FakeStore()
    one, other = first(store), second(store)
    meet(one, other, store)
    for link in (one, other):
        measure(link, 1, 2)
        validate(link, 2)
    assert turn(other, store, is_last=True)
    assert turn(one, store, is_last=True)
    assert sizes(one) == [8.0, 8.0]
    facts = one.facts()
    assert (facts["batches"], facts["together"]) == (2, 2)
    assert (facts["passes"], facts["passes_together"]) == (1, 1)
    assert facts["others"] == [{"process": 1, "heard": True, "batches": 2, "passes": 1}]
    assert one.why_not() is None


@pytest.mark.parametrize(("is_known", "others"), [(True, [False]), (True, []), (False, [True])])
def test_says_that_validation_is_of_the_first_process_where_a_pass_is_not_known_of_all(
    is_known: bool, others: list[bool]
) -> None:
    """Lost in one of them, or not made there at all."""
    store = FakeStore()
    one, other = first(store), second(store)
    meet(one, other, store)
    for link in (one, other):
        measure(link, 1)
        validate(link, 1)
        measure(link, 2)
    validate(one, 2, is_known=is_known)
    for there in others:
        validate(other, 2, is_known=there)
    assert turn(other, store, is_last=True)
    assert turn(one, store, is_last=True)
    assert sizes(one) == [8.0, 8.0]
    assert one.why_not() == (
        "validation is of the first process's part: not every process has validated after the "
        "same steps; of 1 of 2 passes sums over all processes are known"
    )


def test_what_has_waited_travels_together() -> None:
    """A process whose epochs are short must not lose batches to the number of packets."""
    store = FakeStore()
    one, other = first(store), second(store)
    for step in range(1, MOST_WAITING // 2 + 1):
        for link in (one, other):
            measure(link, step)
            validate(link, step)
    meet(one, other, store)
    assert turn(other, store, is_last=True)
    assert len(store.packets) == 2  # all of it, and the end
    assert turn(one, store, is_last=True)
    assert len(sizes(one)) == MOST_WAITING // 2
    assert one.why_not() is None


def test_hands_in_nothing_before_the_first_process_has_answered() -> None:
    """It may have left the name of a run that is over."""
    store = FakeStore()
    first(store)
    other = second(store)
    measure(other, 1)
    assert not any(turn(other, store, is_last=True) for _ in range(3))
    assert len(store.packets) == 1  # the greeting
    again = first(store)
    meet(again, other, store)
    measure(again, 1)
    assert turn(other, store, is_last=True)
    assert turn(again, store, is_last=True)
    assert sizes(again) == [8.0]


def test_processes_that_begin_with_other_weights_are_not_taken_together() -> None:
    store = FakeStore()
    one, other = first(store), second(store, corner=0.25)
    meet(one, other, store)
    measure(one, 1)
    assert not store.packets
    assert "process 1 handed in nothing" in str(one.why_not())


def test_a_store_from_which_nobody_takes_does_not_fill_up() -> None:
    store = FakeStore()
    one, other = first(store), second(store)
    meet(one, other, store)
    for step in range(1, 100):
        measure(other, step)
        turn(other, store)
    assert len(store.packets) == WINDOW
    assert len(other._waiting) == MOST_WAITING


def test_a_store_in_a_file_does_not_grow_for_ever() -> None:
    store = FakeStore()
    one, other = first(store), second(store, most_bytes=1000.0)
    meet(one, other, store)
    for step in range(1, 100):
        for link in (one, other):
            measure(link, step)
        if turn(other, store):
            break
        turn(one, store)
    assert step < 20
    assert turn(one, store)
    assert sizes(one)
    measure(one, step + 1)
    assert "must not grow any more; of " in str(one.why_not())


def test_a_store_that_has_gone_ends_the_speaking_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainsanity.link.PATIENCE_SECONDS", 60.0)  # the thread ends by itself
    store = FakeStore()
    store.is_gone = True
    run = run_of(0)
    one = Gathering(*spoken(run, store), run_id=run.stream.run_id, probes=[])
    one.start()
    measure(one, 1)
    one.finish()
    assert not one._thread.is_alive()
    assert "has failed (Failed to recv, got 0 bytes.)" in str(one.why_not())


@pytest.mark.parametrize(
    ("count", "place", "reason"),
    [
        (2, None, "this torch has no store"),
        (65, MeetingPlace(FakeStore, math.inf), "more than 64 processes"),
    ],
)
def test_says_why_processes_cannot_meet(count: int, place: Any, reason: str) -> None:
    run = run_of(0, count=count, place=place)
    assert processes.link(run, [], boundary(), lambda: None) is None
    assert reason in run.not_testable["processes"]
    assert "of the first process's part" in run.not_testable["processes"]
