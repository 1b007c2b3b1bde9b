"""The files of the front end: where they are, and the addresses under which pages name them."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import trainsanity_server

PACKAGE = Path(trainsanity_server.__file__).parent
# In a wheel the front end lies inside the package, in a checkout beside it.
FOLDERS = (PACKAGE / "frontend", PACKAGE.parents[1] / "frontend")
FOLDER = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[-1])
STATIC = FOLDER / "static"
VENDOR = STATIC / "vendor"


@functools.cache
def vendor() -> dict[str, str]:
    """File names of third-party scripts by their plain names; empty where they were not built."""
    manifest = VENDOR / "manifest.json"
    if not manifest.is_file():
        return {}
    names: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))
    return names


def third_party(name: str) -> str:
    """Address of a third-party script, with a hash in it, so that it may be kept for ever."""
    return f"/static/vendor/{vendor()[name]}"


def own(path: str) -> str:
    """Address of a file of ours; it changes with the content."""
    return f"/static/{path}?v={_digest(STATIC / path)}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]
