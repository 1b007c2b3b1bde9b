"""The wheel is whole: a server started from it needs nothing of the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from imports import ROOT


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as `pip install` would lay it down."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    site = folder / "site"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


@pytest.mark.parametrize(
    "folder",
    [
        "trainsanity_server/frontend/templates",
        "trainsanity_server/frontend/static",
        "trainsanity_server/migrations/versions",
        "trainsanity_server/examples/demo",
    ],
)
def test_holds_every_file_of_the_folders_beside_the_packages(unpacked: Path, folder: str) -> None:
    source = ROOT / folder.removeprefix("trainsanity_server/")
    wanted = {
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted
    there = {path.relative_to(unpacked / folder) for path in (unpacked / folder).rglob("*")}
    assert wanted <= there


def test_holds_no_caches_tests_or_databases(unpacked: Path) -> None:
    names = [str(path.relative_to(unpacked)) for path in unpacked.rglob("*")]
    assert not [name for name in names if re.search(r"\.pyc$|\.db$|(^|/)tests?(/|$)", name)]


def test_carries_the_licence_and_type_hints(unpacked: Path) -> None:
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))
    assert (unpacked / "trainsanity" / "py.typed").is_file()


@pytest.fixture
def address(unpacked: Path, tmp_path: Path) -> Iterator[str]:
    """A server whose every file comes from the wheel."""
    command = [sys.executable, "-m", "trainsanity", "serve", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--db", f"sqlite:///{tmp_path}/runs.db"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        first = server.stdout.readline()
        told = re.match(r"trainsanity is at (\S+)", first)
        assert told, f"the server did not start: {first!r}"
        yield told[1]
    finally:
        server.terminate()
        server.communicate()


def test_serves_pages_and_scripts(address: str) -> None:
    assert httpx2.get(f"{address}/readyz", trust_env=False, timeout=60.0).is_success
    page = httpx2.get(f"{address}/", trust_env=False, timeout=60.0, follow_redirects=True)
    assert page.is_success
    scripts = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert scripts
    for script in scripts:
        assert httpx2.get(f"{address}{script}", trust_env=False, timeout=60.0).is_success, script
