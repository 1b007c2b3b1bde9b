"""What is said in the terminal, and that nothing is lost but words where nobody can be told."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from trainsanity.errors import log
from trainsanity.settings import Settings
from trainsanity.terminal import Terminal


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(Settings.resolve("offline", spool_dir=tmp_path))


def test_says_where_a_run_goes(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.begin("")
    assert capsys.readouterr().err.startswith("trainsanity: watching this run: offline")


@pytest.mark.parametrize("stream", [closed(), FullDisk(), None], ids=["closed", "full", "none"])
def test_training_goes_on_where_nothing_can_be_said(
    stream: io.StringIO | None, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    terminal.begin("")
    log.warning("a probe failed")
