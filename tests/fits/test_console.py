"""What is printed goes on to where it was printed to, whatever becomes of listening."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import keras
import pytest

from trainsanity.probes.announced import Announced
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


def test_other_callbacks_print_to_the_stream_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """While what they say is read, too."""
    terminal, seen = Terminal(), []
    monkeypatch.setattr(sys, "stdout", terminal)

    def say(epoch: int, logs: Any = None) -> None:
        seen.append(sys.stdout)
        print("Epoch 3: early stopping")

    told: list[Any] = []
    run = SimpleNamespace(
        kind="fit",
        model=SimpleNamespace(stop_training=True),
        optimizer=None,
        guard=lambda _, act, *given, default=None: act(*given),
        audit=lambda name, facts: told.append((name, facts)),
    )
    announced = Announced(run)
    announced.on_begin()
    announced._around(keras.callbacks.Callback(), "on_epoch_end", say)(3)
    announced.on_epoch_end(3, {})
    announced.on_closed()
    assert seen == [terminal]
    assert "write" not in vars(terminal)
    ((name, facts),) = told
    assert (name, facts["actions"][0]["after"]) == ("announced", "stopped")
