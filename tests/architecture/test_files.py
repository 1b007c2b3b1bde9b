"""What the folder holds and what it must not hold."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from imports import CLIENT, ROOT, SERVER

import trainsanity

VAGUE = re.compile(r"(utils?|helpers?|managers?|misc|common)", re.IGNORECASE)
ADDRESS = re.compile(rb"https?://", re.IGNORECASE)
LOCKS = ("constraints.txt", "frontend/package-lock.json", "frontend/.npmrc")


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_files_are_named_after_the_concept_they_hold():
    vague = [str(path) for path in _tracked() if VAGUE.fullmatch(path.stem)]
    assert not vague


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_name_no_registry_host(name: str):
    body = (ROOT / name).read_bytes()
    hosts = [line for line in body.splitlines() if ADDRESS.search(line)]
    assert not hosts


def test_every_python_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["server"], *extras["test"], "keras", "tensorflow"]
    pinned = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {_name(each) for each in required} <= pinned


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def test_changelog_speaks_of_this_version():
    assert f"## {trainsanity.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == trainsanity.__version__


@pytest.mark.parametrize("folder", [CLIENT, SERVER], ids=["client", "server"])
def test_every_module_says_what_it_is_for(folder: Path):
    """A rule's file may leave it to its one class."""
    silent = [
        str(path.relative_to(ROOT))
        for path in sorted(folder.rglob("*.py"))
        if not _documented(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def _documented(module: ast.Module) -> bool:
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    return any(ast.get_docstring(node) for node in (module, *classes))
