"""What trainings that run side by side hear of what is printed, and what they leave behind."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trainsanity.printed import Listener


class Terminal(io.StringIO):
    """A stream with a `__dict__`, as those of a terminal have."""


class Ears:
    """Listens in the thread that makes it, and keeps what it hears."""

    def __init__(self, terminal: Terminal, *, only_here: bool = False) -> None:
        self.texts: list[str] = []
        self.warnings: list[str] = []
        self._listener = Listener(self._hear, self._warned, only_here=only_here)
        assert self._listener.listen(terminal)
        self.stop = self._listener.stop

    def _hear(self, stream: Any, text: str, frame: Any) -> None:
        assert frame is not None
        self.texts.append(text)

    def _warned(self, message: Any, category: Any, frame: Any, filename: str, line: int) -> None:
        self.warnings.append(str(message))


@pytest.mark.filterwarnings("always")
def test_leaves_nothing_behind_in_whatever_order_trainings_end() -> None:
    terminal, showwarning = Terminal(), warnings.showwarning
    first, second, third = (Ears(terminal) for _ in range(3))
    terminal.write("a")
    first.stop()
    terminal.write("b")
    third.stop()
    warnings.warn("careful", stacklevel=1)
    second.stop()
    second.stop()
    terminal.write("c")

    assert terminal.getvalue() == "abc"
    assert (first.texts, second.texts, third.texts) == (["a"], ["a", "b"], ["a", "b"])
    assert (second.warnings, first.warnings) == (["careful"], [])
    assert "write" not in vars(terminal)
    assert warnings.showwarning is showwarning


def test_hears_its_own_thread_and_those_in_which_nobody_listens() -> None:
    terminal = Terminal()
    here, strict = Ears(terminal), Ears(terminal, only_here=True)
    # Both threads are alive at the same time: Python gives the number of one that ended to another.
    with ThreadPoolExecutor(1) as training, ThreadPoolExecutor(1) as loading:
        there = training.submit(Ears, terminal).result()
        terminal.write("here")
        training.submit(terminal.write, "there").result()
        loading.submit(terminal.write, "loader").result()
    for ears in (here, strict, there):
        ears.stop()
    assert here.texts == ["here", "loader"]
    assert strict.texts == ["here"]
    assert there.texts == ["there", "loader"]


def test_lies_under_a_wrapper_that_somebody_has_put_over_it() -> None:
    terminal = Terminal()
    ears = Ears(terminal)
    ours = terminal.write
    terminal.write = lambda text: ours(text.upper())  # type: ignore[method-assign]
    ears.stop()
    again = Ears(terminal)
    terminal.write("once")
    again.stop()
    assert terminal.getvalue() == "ONCE"
    assert (ears.texts, again.texts) == ([], ["once"])
