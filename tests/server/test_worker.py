"""A thread that works in steps."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy.exc import OperationalError
from stage import PATIENCE_SECONDS, eventually

from trainsanity_server import worker
from trainsanity_server.worker import Worker


class Counting(Worker):
    name = "counting"

    def __init__(self, *waits: float) -> None:
        super().__init__()
        self.waits = list(waits)
        self.steps = 0
        self.stepped = threading.Event()

    def step(self) -> float:
        self.steps += 1
        self.stepped.set()
        return self.waits.pop(0) if self.waits else 1000.0


def test_it_goes_on_at_once_while_there_is_more_to_do():
    counting = Counting(0.0, 0.0, 0.0)
    counting.start()
    eventually(lambda: counting.steps == 4)
    counting.stop()
    assert not counting.is_alive


def test_it_sleeps_until_somebody_wakes_it():
    counting = Counting()
    counting.start()
    assert counting.stepped.wait(PATIENCE_SECONDS)
    counting.stepped.clear()
    counting.wake()
    assert counting.stepped.wait(PATIENCE_SECONDS)
    counting.stop()
    assert counting.steps == 2


def test_while_the_database_is_away_it_tries_again(monkeypatch, caplog):
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.001)

    class Away(Counting):
        def step(self) -> float:
            if super().step() and self.steps < 3:
                raise OperationalError("SELECT 1", {}, OSError("away"))
            return 1000.0

    away = Away()
    away.start()
    eventually(lambda: away.steps == 3)
    assert away.is_alive
    away.stop()
    assert "counting could not use the database and tries again" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_ends_it_visibly():
    class Faulty(Counting):
        def step(self) -> float:
            raise ZeroDivisionError

    faulty = Faulty()
    faulty.start()
    eventually(lambda: not faulty.is_alive)
    faulty.stop()


def test_it_can_be_stopped_before_it_was_started():
    Counting().stop()


def test_a_stop_that_comes_between_two_steps_is_heard():
    """As it was forgotten where the next step began at that very moment."""

    class Stopped(Counting):
        def step(self) -> float:
            self._stopping.set()  # and the wake that comes with it is cleared already
            return super().step()

    stopped = Stopped()
    stopped.start()
    eventually(lambda: not stopped.is_alive)
    assert stopped.steps == 1
