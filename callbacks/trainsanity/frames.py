"""Frames of running code: who has called, and whose files they are of."""

from __future__ import annotations

import itertools
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PYTHON = "Python"
_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_FOLDERS = ("site-packages", "dist-packages")


def outward(start: FrameType | None) -> Iterator[FrameType]:
    """The frame and all that have called it, the innermost first; nothing where there is none, as
    where the interpreter itself calls.
    """
    frame = start
    while frame is not None:
        yield frame
        frame = frame.f_back


def frames_of_last_error() -> Iterator[FrameType]:
    """The frames that the last error shown by a notebook or an interactive interpreter keeps alive,
    all of them left. The one that caught it may be running, and is not among them.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    trace = error.__traceback__ if error is not None else None
    catching = trace.tb_frame if trace is not None else None
    while trace is not None:
        yield from itertools.takewhile(lambda f: f is not catching, outward(trace.tb_frame))
        trace = trace.tb_next


def package_of(filename: str) -> str | None:
    """The installed package that a file belongs to, or `PYTHON`; None for the user's own code."""
    parts = Path(filename).parts
    for folder in _FOLDERS:
        if folder in parts[:-1]:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return PYTHON if is_of_python(filename) else None


def is_of_python(filename: str) -> bool:
    """Whether a file is of the standard library, in which packages are installed too."""
    if filename.startswith("<frozen"):
        return True
    return filename.startswith(_LIBRARY) and not any(f in filename for f in _FOLDERS)
