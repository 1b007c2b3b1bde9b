"""Who imports whom, read from the source: nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "callbacks" / "trainsanity"
SERVER = ROOT / "backend" / "trainsanity_server"


@dataclass(frozen=True)
class Import:
    """One import statement's target, e.g. module `trainsanity.rules` in file x.py, line 7."""

    file: Path
    line: int
    module: str

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(folder: Path) -> list[Import]:
    """Every import in the folder's files, also inside functions; relative ones made absolute."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        package = ".".join(file.relative_to(_source_root(folder)).parts[:-1])
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            found += [Import(file, node.lineno, name) for name in _modules(node, package)]
    return found


def _source_root(folder: Path) -> Path:
    return next(p.parent for p in (folder, *folder.parents) if p in (CLIENT, SERVER))


def _modules(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        # `from package import part` may name a module: both are reported.
        yield from (f"{base}.{alias.name}" for alias in node.names)
