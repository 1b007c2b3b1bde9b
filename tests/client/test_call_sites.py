"""Which line of the user's an operation is blamed on."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from trainsanity import call_sites

SCRIPT = """
import contextlib
import keras

@contextlib.contextmanager
def doubled(x):
    yield x + x

with doubled(keras.Input((4,))) as y:
    pass
"""


@pytest.mark.parametrize("folder", ["project", "keras", "torch", "tree", "trainsanity"])
def test_is_known_wherever_the_project_lies(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "train.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    call_sites.remember_nodes()
    y = runpy.run_path(str(path))["y"]
    (node,) = y._keras_history.operation._inbound_nodes
    assert call_sites.site_of_node(node) == "train.py:7"


def test_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is gone, models are built all the same."""
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    call_sites.remember_nodes()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    y = runpy.run_path(str(path))["y"]
    (node,) = y._keras_history.operation._inbound_nodes
    assert call_sites.site_of_node(node) == "train.py:7"
