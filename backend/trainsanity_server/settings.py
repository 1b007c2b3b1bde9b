"""What an operator can set: `TRAINSANITY_*` variables, nothing else reads the environment."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from trainsanity.rules import Severity
from trainsanity_server.errors import StartupError

PREFIX = "TRAINSANITY_"
# Of letters that mean themselves in addresses, pages and cookies.
PLAIN_PATH = re.compile(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])*")
LOGIN = re.compile("//.*@")  # of an address: a user's name and password
# Variables of the client, and of docker-compose.yml, which are none of ours.
OTHERS = ("TRAINSANITY_URL", "TRAINSANITY_API_KEY", "TRAINSANITY_SPOOL_DIR", "TRAINSANITY_PORT")


def default_database_url() -> str:
    """An SQLite file in the user's data folder; the folder is made when the database is opened."""
    return f"sqlite:///{platformdirs.user_data_path('trainsanity') / 'trainsanity.db'}"


class FileVariants(PydanticBaseSettingsSource):
    """`TRAINSANITY_X_FILE=/run/secrets/x` stands for `TRAINSANITY_X=<content of that file>`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        return (_content(Path(path), field_name) if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in values.items() if value is not None}


def _content(path: Path, field_name: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StartupError(
            f"{PREFIX}{field_name.upper()}_FILE must name a file that the server may read. "
            f"Received: {path} ({error.strerror})"
        ) from error


def _list(value: Any) -> Any:
    """Lists are written with commas: `a,b`."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


class Settings(BaseSettings):
    """Read from `TRAINSANITY_<FIELD>`, or from the file that `TRAINSANITY_<FIELD>_FILE` names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    database_url: str = Field(
        default_factory=default_database_url,
        description="SQLAlchemy address of the database: `sqlite:///...` or `postgresql+psycopg://...`.",
    )
    base_url: str = Field(
        "http://127.0.0.1:8321",
        description="Address under which people reach this server, in links; where a proxy puts a "
        "path before every page, with it: `https://team.example/sanity`.",
    )
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        [],
        description="Keys that clients and people must show, with commas between; none: no check.",
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [],
        description="Names besides localhost and the host of BASE_URL under which this server "
        "answers, with commas between; `*` for any. Addresses in digits always work.",
    )
    slack_webhook_url: SecretStr | None = Field(
        None, description="Slack incoming webhook that alerts are sent to."
    )
    notify_from: Severity = Field(
        Severity.WARNING,
        description="The mildest severity that channels hear of: critical, warning or advice.",
    )
    slack_allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [], description="Hosts besides Slack's own that the webhook may point to, commas between."
    )
    slack_proxy: str | None = Field(
        None, description="HTTP proxy on the way to Slack, e.g. `http://proxy.example:3128`."
    )
    sqlite_synchronous: Literal["full", "normal"] = Field(
        "full",
        description="`full`: what was acknowledged survives a power cut; `normal`: it survives the "
        "death of the process, and a power cut may take the last moments.",
    )
    judge_interval_seconds: float = Field(
        0.2, gt=0, description="Shortest time between two judgements of one run, in seconds."
    )
    judge_lease_seconds: float = Field(
        10.0,
        gt=0,
        description="Seconds after which another server process may judge a run in hand.",
    )
    histories_in_memory: int = Field(
        32,
        ge=1,
        description="Runs whose recent evidence the judge keeps in memory, about 4 MiB each.",
    )
    mute_hours: float = Field(24.0, gt=0, description="Hours a mute lasts where no end is given.")
    heuristics: bool = Field(
        True, description="Whether rules that only advise about training health take part."
    )
    niceness: int = Field(
        10,
        ge=0,
        le=19,
        description="How far this server gives way to other processes of its machine, such as a "
        "training, as `nice` counts: 0 not at all, 19 most. Where Linux groups processes by "
        "session, one in another terminal is given way to only by a server that has a session of "
        "its own, as under systemd, in a container or by `setsid`.",
    )

    @property
    def path_prefix(self) -> str:
        """The path of `base_url`, without a slash at its end; "" where it ends with the host."""
        return urlsplit(self.base_url).path

    @field_validator("api_keys", "allowed_hosts", "slack_allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _list(value)

    @field_validator("api_keys")
    @classmethod
    def _fit_for_a_header(cls, value: list[SecretStr]) -> list[SecretStr]:
        for number, key in enumerate((key.get_secret_value() for key in value), 1):
            if not (key.isascii() and key.isprintable()):
                raise ValueError(
                    "keys must be made of ASCII letters, digits and signs, since requests carry "
                    f"them in a header and a cookie. Received: another character in key {number}"
                )
        return value

    @field_validator("base_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"must begin with http:// or https://. Received: {value!r}")
        address = value.rstrip("/")
        parts = urlsplit(address)
        if parts.query or parts.fragment or not PLAIN_PATH.fullmatch(parts.path):
            raise ValueError(
                "must end with the host or port, or with a path of plain names after it as in "
                f"https://team.example/sanity. Received: {value!r}"
            )
        return address

    @field_validator("database_url")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        """`postgres://` and `postgresql://` mean the driver that is installed."""
        for short in ("postgres://", "postgresql://"):
            if value.startswith(short):
                return "postgresql+psycopg://" + value.removeprefix(short)
        if not value.startswith(("sqlite://", "postgresql+psycopg://")):
            raise ValueError(
                "must begin with sqlite:/// or postgresql://, e.g. sqlite:///runs.db. "
                f"Received: {LOGIN.sub('//***@', value)!r}"
            )
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileVariants(settings_cls)


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """Those that look like settings and are none, each with the name that may be meant, or ""."""
    fields = [field.upper() for field in Settings.model_fields]
    known = [*fields, *(f"{field}_FILE" for field in fields)]
    given = {n.removeprefix(PREFIX) for n in names if n.startswith(PREFIX) and n not in OTHERS}
    near = {name: get_close_matches(name, known, n=1) for name in sorted(given.difference(known))}
    return {PREFIX + name: PREFIX + meant[0] if meant else "" for name, meant in near.items()}


def check_bind(settings: Settings, host: str) -> None:
    """Refuses to offer a server without keys to other machines.

    Raises:
        StartupError: `host` is no loopback address and no key is set.
    """
    if is_loopback(host) or settings.api_keys:
        return
    raise StartupError(
        f"--host {host} would offer this server to other machines without any key. "
        f"Set {PREFIX}API_KEYS to one or more keys of your choice (clients show one with api_key= "
        f"or {PREFIX}API_KEY), or listen on 127.0.0.1."
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
