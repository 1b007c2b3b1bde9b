"""What is printed goes on to where it was printed to, whatever becomes of listening."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from trainsanity.probes.console import Console


class Terminal(io.StringIO):
    """A stream with a `__dict__`, as those of a terminal have."""


@pytest.mark.parametrize("ends", [False, True])
def test_hears_nothing_once_the_interpreter_ends(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then modules have lost their names, ours too."""
    heard: list[Any] = []
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "is_finalizing", lambda: ends)
    console = Console(SimpleNamespace(guard=lambda *parts: heard.append(parts)))
    console.on_begin()
    print("the last word", file=sys.stderr)
    console.on_closed()

    assert terminal.getvalue() == "the last word\n"
    assert bool(heard) is not ends
