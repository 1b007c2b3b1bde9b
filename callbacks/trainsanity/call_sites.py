"""Where in the user's source an operation was written.

Keras keeps no source lines. While a functional model is built it makes a `Node` for every call;
from `remember_nodes` on the user's line of each is remembered beside it (never in it), at about a
microsecond a node. A model that was built before has no lines; then the place is told by layers
alone.
"""

from __future__ import annotations

import ast
import functools
import linecache
import os
import sys
import weakref
from types import FrameType
from typing import Any

from trainsanity.frames import is_of_python, outward

# Packages whose frames are not the user's.
_OPERATIONS: dict[type[ast.operator], str] = {
    ast.Add: "Add",
    ast.Sub: "Subtract",
    ast.Mult: "Multiply",
    ast.Div: "TrueDivide",
    ast.FloorDiv: "FloorDivide",
    ast.Mod: "Mod",
    ast.Pow: "Power",
    ast.MatMult: "Matmul",
}
_OTHERS = ("keras", "tensorflow", "jax", "torch", "trainsanity", "tree", "optree")

_sites: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def user_frame(start: FrameType | None) -> FrameType | None:
    """The innermost frame that is neither Keras', nor a backend's, nor Python's, nor ours."""
    users = (f for f in outward(start) if not _is_of_others(f.f_code.co_filename))
    return next(users, None)


@functools.cache
def _is_of_others(filename: str) -> bool:
    # By where packages are: a project of the user's may lie in a folder that is called like one.
    return filename.startswith(tuple(_folders_of_others())) or is_of_python(filename)


def _folders_of_others() -> list[str]:
    packages = [sys.modules[name] for name in _OTHERS if name in sys.modules]
    return [folder + os.sep for package in packages for folder in getattr(package, "__path__", ())]


def site_of_frame(frame: FrameType | None) -> str | None:
    """ "model.py:41", with as much of the path as lies below the working directory."""
    if frame is None:
        return None
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


def _short(path: str) -> str:
    try:
        relative = os.path.relpath(path) if os.path.isabs(path) else path
    except (OSError, ValueError):  # the working directory is gone, or on another Windows drive
        relative = ".."
    return os.path.basename(path) if relative.startswith("..") else relative


def site_of_node(node: Any) -> str | None:
    """The user's line that made a node of a functional model, if it was seen."""
    return _sites.get(node)


@functools.cache
def remember_nodes() -> None:
    """Begins to remember the line of every node that is made from now on."""
    from keras.src.ops.node import Node

    original = Node.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        site = site_of_frame(user_frame(sys._getframe(1)))
        if site is not None:
            _sites[self] = site

    Node.__init__ = init


def operation_between(filename: str, first: int, last: int) -> tuple[int, str, str | None] | None:
    """The first operator from line `first` to `last` of a file: its line, its source text, and the
    operation of `keras.ops` that it is.

    For a mask that was lost between two calls of layers: what happened in between is most likely
    it.
    """
    source = "".join(linecache.getlines(filename))
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and first <= node.lineno <= last
    ]
    if not found:
        return None
    node = min(found, key=lambda n: (n.lineno, n.col_offset))
    return node.lineno, ast.unparse(node)[:80], _OPERATIONS.get(type(node.op))
