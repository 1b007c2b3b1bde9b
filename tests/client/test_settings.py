"""Settings are resolved from arguments and environment, and say what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainsanity.errors import SettingsError
from trainsanity.settings import Expect, Settings, url_option


def resolve(*args: Any, **options: Any) -> Settings:
    return Settings.resolve(*args, **{"environ": {}, **options})


def test_defaults_to_a_server_on_this_machine() -> None:
    assert resolve().url == "http://127.0.0.1:8321"


def test_takes_url_key_and_folder_from_the_environment() -> None:
    environ = {
        "TRAINSANITY_URL": "https://watch.example/",
        "TRAINSANITY_API_KEY": "ts_abc",
        "TRAINSANITY_SPOOL_DIR": "/var/spool/ts",
    }

    settings = Settings.resolve(environ=environ)

    assert settings.url == "https://watch.example"
    assert settings.api_key == "ts_abc"
    assert settings.spool_dir == Path("/var/spool/ts")


def test_arguments_win_over_the_environment(tmp_path: Path) -> None:
    environ = {"TRAINSANITY_URL": "https://watch.example", "TRAINSANITY_API_KEY": "ts_abc"}

    settings = Settings.resolve("offline", api_key="other", spool_dir=tmp_path, environ=environ)

    assert settings.is_offline
    assert settings.api_key == "other"
    assert settings.spool_dir == tmp_path


def test_empty_variables_count_as_unset() -> None:
    environ = {"TRAINSANITY_URL": "", "TRAINSANITY_API_KEY": "", "TRAINSANITY_SPOOL_DIR": ""}

    settings = Settings.resolve(environ=environ)

    assert settings == resolve()


def test_does_not_print_the_key() -> None:
    assert "ts_secret" not in repr(resolve(api_key="ts_secret"))


def test_normalizes_the_run_id() -> None:
    run_id = "01A1FB97-F0E9-7E2C-92EC-36DBC0880B6C"
    assert resolve(run_id=run_id).run_id == run_id.lower()


def test_makes_plain_data_of_the_config() -> None:
    config = {
        "lr": np.float32(0.5),
        "data": Path("/data"),
        "sizes": (1, 2),
        3: {"deep": {4}},
        "huge": 2**70,
        "none": None,
    }

    assert resolve(config=config).config == {
        "lr": 0.5,
        "data": "/data",
        "sizes": [1, 2],
        "3": {"deep": [4]},
        "huge": str(2**70),
        "none": None,
    }


@pytest.mark.parametrize("key", ["hf_token", "apiKey", "AWS_SECRET_ACCESS_KEY", "db.password"])
def test_hides_secrets_in_the_config(key: str) -> None:
    assert resolve(config={"login": {key: "abc"}}).config == {"login": {key: "(hidden)"}}


@pytest.mark.parametrize(
    ("key", "value"), [("max_tokens", 512), ("token", 7), ("tokenizer", "bpe"), ("key_dim", "8")]
)
def test_shows_what_only_sounds_like_a_secret(key: str, value: Any) -> None:
    assert resolve(config={key: value}).config == {key: value}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "ftp://host"}, ["url", "http://", "'ftp://host'"]),
        ({"url": "localhost:8321"}, ["url", "'localhost:8321'"]),
        ({"url": "http://host:99999"}, ["url", "99999"]),
        ({"url": "http://"}, ["url", "url='http://'"]),
        ({"url": "http://host/?a=1"}, ["url", "leave out"]),
        ({"url": 8321}, ["url", "8321"]),
        ({"project": ""}, ["project", "1 to 256", "''"]),
        ({"project": "x" * 300}, ["project", "1 to 256"]),
        ({"run_id": "mine"}, ["run_id", "UUID", "'mine'"]),
        ({"tags": "one"}, ["tags", "tags=('one',)"]),
        ({"tags": (1,)}, ["tags", "1"]),
        ({"config": [1]}, ["config", "dict", "[1]"]),
        ({"expect": {"shuffle": True}}, ["expect", "Expect(...)"]),
        ({"on_alert": "shout"}, ["on_alert", "'warn'", "'shout'"]),
        ({"update_freq": 0}, ["update_freq", "at least 1", "0"]),
        ({"update_freq": True}, ["update_freq", "True"]),
        ({"spool_dir": 5}, ["spool_dir", "folder", "5"]),
        ({"close_timeout": -1}, ["close_timeout", "0 or more", "-1"]),
        ({"close_timeout": float("nan")}, ["close_timeout", "nan"]),
        ({"close_timeout": "soon"}, ["close_timeout", "'soon'"]),
        ({"audit_budget": 1.5}, ["audit_budget", "between 0 and 1", "1.5"]),
        ({"keep_spool": "yes"}, ["keep_spool", "'yes'"]),
    ],
)
def test_names_the_argument_and_what_was_received(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(**options)

    for word in words:
        assert word in str(caught.value)


def test_names_the_variable_when_the_environment_is_wrong() -> None:
    with pytest.raises(SettingsError, match=r"TRAINSANITY_URL.*'nonsense'"):
        Settings.resolve(environ={"TRAINSANITY_URL": "nonsense"})


def test_keeps_credentials_out_of_the_message() -> None:
    with pytest.raises(SettingsError, match="api_key") as caught:
        resolve("https://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_keeps_a_wrong_key_out_of_the_message() -> None:
    with pytest.raises(SettingsError, match="api_key") as caught:
        resolve(api_key="hunter2\n")
    assert "hunter2" not in str(caught.value)


def test_expect_tells_only_what_was_said() -> None:
    expect = Expect(shuffle=False, ignore=["memory-growth"], initial_weights=Path("/w.h5"))

    assert expect.as_facts() == {
        "shuffle": False,
        "ignore": ["memory-growth"],
        "initial_weights": "/w.h5",
    }
    assert Expect().as_facts() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shuffle": "yes"}, ["shuffle", "True, False or None", "'yes'"]),
        ({"ignore": "memory-growth"}, ["ignore", "ignore=('memory-growth',)"]),
        ({"ignore": ("Memory Growth",)}, ["ignore", "trainsanity rules", "'Memory Growth'"]),
        ({"data_rows": 0}, ["data_rows", "1 or more", "0"]),
        ({"pad_id": 0.5}, ["pad_id", "0.5"]),
        ({"initial_weights": 5}, ["initial_weights", "path of a weights file", "5"]),
    ],
)
def test_expect_says_what_is_wrong(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Expect(**options)

    for word in words:
        assert word in str(caught.value)


def test_a_slip_in_a_rule_to_ignore_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert Expect(ignore=("memory-growth", "memory-grwth", "qqq")).ignore[1] == "memory-grwth"
    assert caplog.messages == [
        "Expect(ignore=...) names the rule 'memory-grwth', which is unknown. "
        "Is 'memory-growth' meant?",
        "Expect(ignore=...) names the rule 'qqq', which is unknown. `trainsanity rules` lists all.",
    ]


def test_a_command_names_the_address_only_where_it_would_not_go_there_by_itself():
    set_here = {"TRAINSANITY_URL": "https://sanity.example/"}
    assert url_option("https://sanity.example", set_here) == ""
    assert url_option("https://sanity.example", {}) == " --url https://sanity.example"
    assert url_option("http://127.0.0.1:8321", {}) == ""
    assert url_option("offline", {}) == ""


@pytest.mark.parametrize(
    ("configure", "line"),
    [
        ("", "trainsanity: disk is full\n"),
        ("basicConfig(format='%(name)s/%(message)s')", "trainsanity/disk is full\n"),
    ],
)
def test_warnings_say_who_warns_once_however_logging_is_set_up(configure, line):
    program = (
        "from logging import *\n"
        f"{configure}\n"
        "from trainsanity.settings import Settings\n"
        "from trainsanity.terminal import Terminal\n"
        "for _ in range(2): Terminal(Settings.resolve('offline'))\n"
        "getLogger('trainsanity').warning('disk is full')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == line


def test_a_closed_standard_error_is_not_answered_on_standard_output() -> None:
    program = (
        "import sys\n"
        "sys.stderr = None\n"
        "from trainsanity.settings import Settings\n"
        "from trainsanity.terminal import Terminal\n"
        "Terminal(Settings.resolve('offline')).begin('')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
