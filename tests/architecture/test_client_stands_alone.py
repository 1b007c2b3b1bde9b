"""The client goes into training images: it needs neither the server's packages nor a backend."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from imports import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BACKENDS = ("keras", "tensorflow", "jax", "jaxlib", "torch")
SERVER_PACKAGES = (
    "trainsanity_server",
    "fastapi",
    "starlette",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "pydantic",
    "pydantic_settings",
    "jinja2",
    "httpx2",
    "slack_sdk",
    "msgspec",
    "prometheus_client",
    "structlog",
    "rich",
)

# As if the packages were not installed.
FORBID = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(f"{{name}} was imported", name=name)
sys.meta_path.insert(0, Forbidden())
"""


def _python(code: str, forbidden: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    program = FORBID.format(forbidden=set(forbidden)) + code
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "code",
    [
        "import trainsanity; trainsanity.__version__; trainsanity.Expect(shuffle=True)",
        "from trainsanity import rules; assert rules.all_rules()",
        "import trainsanity.wire",
        "import trainsanity.spool",
        "import trainsanity.stream",
        "import trainsanity.sender",
        "import trainsanity.settings",
        "import trainsanity.cli",
    ],
)
def test_imports_without_server_packages_and_without_a_backend(code: str):
    result = _python(code, BACKENDS + SERVER_PACKAGES)
    assert result.returncode == 0, result.stderr


def test_the_import_hook_of_these_tests_does_forbid():
    result = _python("import sqlalchemy", SERVER_PACKAGES)
    assert "sqlalchemy was imported" in result.stderr


def test_callback_asks_for_keras_only_when_it_is_used():
    result = _python(
        "import trainsanity\n"
        "try:\n"
        "    trainsanity.SanityCallback\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name)",
        BACKENDS,
    )
    assert result.stdout.strip() == "keras", result.stderr


def test_command_line_lists_its_commands_without_server_packages():
    result = _python(
        "import sys\n"
        "from trainsanity.cli import main\n"
        "sys.argv = ['trainsanity', '--help']\n"
        "main()",
        BACKENDS + SERVER_PACKAGES,
    )
    assert result.returncode == 0, result.stderr
    assert "alerts" in result.stdout


def test_no_backend_is_required_or_pinned():
    required = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]
    assert not [each for each in required if each.lower().startswith(BACKENDS)]
