"""Frames of running code: who has called, and whose files they are of."""

from __future__ import annotations

import os
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
