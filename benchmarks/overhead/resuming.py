"""What a long benchmark has found so far, kept in a file from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

resume_option = click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to keep in what was found, and to go on from.",
)


class Kept:
    """Findings as plain data, a line of JSON for each; without a file nothing is kept.

    Args:
        key_of: tells from a finding what it is about.
    """

    def __init__(self, path: Path | None, key_of: Callable[[Any], Any]) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        self._known = {key_of(finding): finding for finding in map(json.loads, lines)}

    def of(self, key: Any) -> Any:
        """None where nothing was found yet."""
        return self._known.get(key)

    def keep(self, finding: Any) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finding, default=sorted) + "\n")
