"""What users can set or call stands in the docs, under its real name and with its real default."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from imports import CLIENT, ROOT

import trainsanity
from trainsanity.cli import main
from trainsanity.keras_versions import LOWEST_KERAS, NEWEST_KERAS
from trainsanity.settings import Expect
from trainsanity_server.settings import PREFIX, Settings

DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]


def _page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def _row(page: str, name: str) -> str:
    rows = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
    assert len(rows) == 1, f"{name} needs one row in a table. Found: {rows}"
    return rows[0]


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_of_the_server_is_documented_with_its_default(field: str):
    row = _row(_page("configuration.md"), f"{PREFIX}{field.upper()}")
    default = Settings.model_fields[field].default
    if isinstance(default, (str, float, int)):
        assert f"| `{default}` |" in row


def _arguments_of_the_callback() -> list[str]:
    """Read from the source: importing it would import Keras."""
    module = ast.parse((CLIENT / "callback.py").read_text(encoding="utf-8"))
    init = next(
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    return [each.arg for each in (*init.args.args, *init.args.kwonlyargs) if each.arg != "self"]


@pytest.mark.parametrize("name", _arguments_of_the_callback())
def test_every_argument_of_the_callback_is_documented(name: str):
    _row(_page("configuration.md"), name)


@pytest.mark.parametrize("name", Expect.__dataclass_fields__)
def test_every_expectation_is_documented(name: str):
    _row(_page("configuration.md"), name)


def test_page_of_rules_is_what_the_rules_say():
    """`make docs` writes it."""
    written = runpy.run_path(str(DOCS / "write_rules.py"))["page"]() + "\n"
    assert _page("rules.md") == written


def test_rule_in_the_contributing_guide_works(tmp_path: Path):
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    file = tmp_path / "loss_looks_finite.py"
    file.write_text(re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rule = module.LossLooksFinite()
    assert [found.subject for found in rule.check(rule.fires_on().view())] == ["loss"]
    assert list(rule.check(rule.quiet_on().view())) == []
    assert all(rule.explanation()[part] for part in ("summary", "compares", "why", "try", "source"))


def _commands() -> set[str]:
    return {*main.commands, *(each.name for each in entry_points(group="trainsanity.commands"))}


@pytest.mark.parametrize("name", sorted(_commands()))
def test_every_command_is_documented(name: str):
    assert re.search(rf"^\| `trainsanity {name}\b", _page("configuration.md"), re.MULTILINE)


def test_documented_commands_exist():
    named = set(re.findall(r"^\| `trainsanity (\w+)", _page("configuration.md"), re.MULTILINE))
    assert named == _commands()


@pytest.mark.parametrize("name", trainsanity.__all__)
def test_every_public_name_is_documented(name: str):
    if name == "__version__":
        return
    assert any(name in page.read_text(encoding="utf-8") for page in PAGES)


def test_readme_names_every_make_target_that_ci_and_users_need():
    text = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("*.md"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert {"setup", "demo", "test", "lint", "zoo", "bench", "screenshots"} <= targets
    assert {"demo", "test", "setup", "lint"} <= set(re.findall(r"make ([a-z]+)", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)]*))?\)", text):
        other = (page.parent / target) if target else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(other), f"{page.name} links to {target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_range_of_keras_is_the_same_everywhere():
    lowest, newest = (".".join(map(str, v)) for v in (LOWEST_KERAS, NEWEST_KERAS))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["keras"] == [f"keras>={lowest},<4"]
    assert f"| Keras | {lowest} to {newest}," in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Keras must be {lowest}" in _page("getting-started.md").replace("\n", " ")


def test_tests_that_are_named_as_proof_exist():
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 25
    for file, test in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file} has no {test}"
    for script in re.findall(r"`(benchmarks/\w+\.py)`", text):
        assert (ROOT / script).exists(), script
