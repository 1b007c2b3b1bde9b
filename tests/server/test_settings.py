"""What an operator sets, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainsanity.rules import Severity
from trainsanity_server.app import create_app
from trainsanity_server.errors import StartupError
from trainsanity_server.settings import Settings, check_bind, unknown_variables


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TRAINSANITY_{name.upper()}", raising=False)
        monkeypatch.delenv(f"TRAINSANITY_{name.upper()}_FILE", raising=False)


def keys(settings: Settings) -> list[str]:
    return [key.get_secret_value() for key in settings.api_keys]


def test_without_any_setting_it_is_a_file_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = Settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/trainsanity/trainsanity.db"
    assert settings.base_url == "http://127.0.0.1:8321"
    assert keys(settings) == []
    assert settings.slack_webhook_url is None
    assert settings.notify_from is Severity.WARNING


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("TRAINSANITY_DATABASE_URL", "postgresql://me@db/ts")
    monkeypatch.setenv("TRAINSANITY_BASE_URL", "https://ts.example/")
    monkeypatch.setenv("TRAINSANITY_API_KEYS", "one, two,")
    monkeypatch.setenv("TRAINSANITY_ALLOWED_HOSTS", "a.example,b.example")
    settings = Settings()
    assert settings.database_url == "postgresql+psycopg://me@db/ts"
    assert settings.base_url == "https://ts.example"
    assert keys(settings) == ["one", "two"]
    assert settings.allowed_hosts == ["a.example", "b.example"]


def test_a_secret_may_lie_in_a_file(monkeypatch, tmp_path):
    path = tmp_path / "keys"
    path.write_text("one,two\n")
    monkeypatch.setenv("TRAINSANITY_API_KEYS_FILE", str(path))
    assert keys(Settings()) == ["one", "two"]


def test_the_variable_itself_wins_over_the_file(monkeypatch, tmp_path):
    path = tmp_path / "url"
    path.write_text("https://hooks.slack.com/services/file")
    monkeypatch.setenv("TRAINSANITY_SLACK_WEBHOOK_URL_FILE", str(path))
    monkeypatch.setenv("TRAINSANITY_SLACK_WEBHOOK_URL", "https://hooks.slack.com/services/variable")
    assert Settings().slack_webhook_url.get_secret_value().endswith("variable")


def test_a_file_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINSANITY_API_KEYS_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(StartupError, match=r"TRAINSANITY_API_KEYS_FILE must name a file .*nowhere"):
        Settings()


def test_a_slip_in_a_name_is_noticed_and_the_right_name_is_told():
    names = ["TRAINSANITY_API_KEYS_FILE", "TRAINSANITY_URL", "TRAINSANITY_BASEURL", "HOME"]
    assert unknown_variables(names) == {"TRAINSANITY_BASEURL": "TRAINSANITY_BASE_URL"}


def test_a_name_that_resembles_nothing_is_told_alone():
    assert unknown_variables(["TRAINSANITY_XYZ"]) == {"TRAINSANITY_XYZ": ""}


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("https://t.example/", ""),
        ("https://t.example/sanity/", "/sanity"),
        ("http://t/a/b", "/a/b"),
    ],
)
def test_what_follows_the_host_stands_before_every_page(address, prefix):
    assert Settings(base_url=address).path_prefix == prefix


def test_a_path_that_pages_have_already_is_refused():
    with pytest.raises(StartupError, match="must not begin with /runs"):
        create_app(Settings(base_url="https://ts.example/runs"))


def test_secrets_are_not_printed():
    settings = Settings(api_keys="s3cr3t", slack_webhook_url="https://hooks.slack.com/s3cr3t")
    assert "s3cr3t" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("database_url", "mysql://x", "Received: 'mysql://x'"),
        ("database_url", "mysql://me:s3cr3t@db/x", r"Received: 'mysql://\*\*\*@db/x'"),
        ("base_url", "ts.example", "Received: 'ts.example'"),
        ("base_url", "https://ts.example/?a", r"Received: 'https://ts.example/\?a'"),
        ("base_url", "https://ts.example/a b", "Received: 'https://ts.example/a b'"),
        ("base_url", "https://ts.example//a", "Received: 'https://ts.example//a'"),
        ("base_url", "https://ts.example/..", r"Received: 'https://ts.example/\.\.'"),
        ("api_keys", "k3y,schlüssel", "another character in key 2"),
        ("mute_hours", 0, "greater than 0"),
        ("sqlite_synchronous", "off", "'full' or 'normal'"),
        ("notify_from", "loud", "critical"),
        ("niceness", -5, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused(name, value, words):
    with pytest.raises(ValidationError, match=words):
        Settings(**{name: value})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "ts.example"])
def test_other_machines_need_a_key(host):
    with pytest.raises(StartupError, match="TRAINSANITY_API_KEYS") as caught:
        check_bind(Settings(), host)
    assert host in str(caught.value)
    check_bind(Settings(api_keys="k"), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(host):
    check_bind(Settings(), host)


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())
