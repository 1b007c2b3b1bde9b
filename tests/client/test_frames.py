"""Whose code runs, told from the files of its frames."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trainsanity.frames import frames_of_last_error, outward, package_of


def test_walks_from_a_frame_to_all_that_have_called_it() -> None:
    here = sys._getframe()
    assert next(outward(here)) is here
    assert [*outward(here)][1:] == [*outward(here.f_back)]


def test_has_no_frame_to_walk_where_the_interpreter_itself_calls() -> None:
    assert [*outward(None)] == []


def test_the_frames_of_the_last_error_are_those_that_were_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "last_exc", None, raising=False)
    monkeypatch.setattr(sys, "last_value", None, raising=False)
    assert [*frames_of_last_error()] == []

    def numbers() -> Iterator[int]:
        yield 1 // 0

    def add() -> int:
        return sum(numbers())

    try:
        add()
    except ZeroDivisionError as error:
        monkeypatch.setattr(sys, "last_value", error)
        names = {frame.f_code.co_name for frame in frames_of_last_error()}
    assert names == {"add", "numbers"}


@pytest.mark.parametrize(
    ("file", "package"),
    [
        (np.__file__, "numpy"),
        (json.__file__, "Python"),
        ("<frozen importlib._bootstrap>", "Python"),
        (str(Path(sysconfig.get_path("stdlib"), "site-packages", "six.py")), "six"),
        ("/home/ada/keras/train.py", None),
        ("/home/ada/python3/train.py", None),
        ("/home/ada/site-packages.py", None),
        ("<ipython-input-1>", None),
    ],
)
def test_knows_what_package_a_file_is_of(file: str, package: str | None) -> None:
    assert package_of(file) == package
