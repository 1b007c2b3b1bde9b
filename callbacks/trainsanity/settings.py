"""What the user chose: arguments of the callback and TRAINSANITY_* variables, checked once.

Nothing else in the client reads the environment.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import platformdirs

from trainsanity.errors import SettingsError, log
from trainsanity.redaction import HIDDEN, is_secret

DEFAULT_URL = "http://127.0.0.1:8321"
OFFLINE = "offline"
ON_ALERT = ("warn", "stop", "silent")
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

OnAlert = str | Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Expect:
    """What you intend. Rules compare it with what happens; what you leave out is not assumed.

    Attributes:
        shuffle: True where every epoch is meant to see the batches in another order.
        causal: True where no output may depend on later positions of the input.
        deterministic: True where the same seed is meant to give the same weights.
        initial_weights: path of the weights file from which training is meant to start.
        pad_id: the id that stands for padding in integer inputs and targets.
        data_rows: rows that one epoch is meant to see.
        carried_metrics: keys of metrics that are meant to go on counting over epochs.
        symmetric: names of layers whose output is meant to be mirrored where their input is.
        phases: True where compiling anew between two `fit` calls is on purpose.
        ignore: slugs of rules that shall not speak about this run.
    """

    shuffle: bool | None = None
    causal: bool | None = None
    deterministic: bool | None = None
    initial_weights: str | os.PathLike[str] | None = None
    pad_id: int | None = None
    data_rows: int | None = None
    carried_metrics: tuple[str, ...] = ()
    symmetric: tuple[str, ...] = ()
    phases: bool = False
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("shuffle", "causal", "deterministic"):
            _check(name, getattr(self, name), (bool, type(None)), "True, False or None")
        _check("phases", self.phases, (bool,), "True or False")
        kinds = (str, os.PathLike, type(None))
        _check("initial_weights", self.initial_weights, kinds, "the path of a weights file")
        for name, least in (("pad_id", None), ("data_rows", 1)):
            _check_whole(name, getattr(self, name), least)
        for name in ("ignore", "carried_metrics", "symmetric"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for slug in self.ignore:
            if not _SLUG.fullmatch(slug):
                raise SettingsError(
                    "ignore must hold rule slugs as `trainsanity rules` lists them, e.g. "
                    f"'memory-growth'. Received: {slug!r}"
                )
        _warn_of_unknown_rules(self.ignore)

    def as_facts(self) -> dict[str, Any]:
        """What was said, as plain data for the run's header; nothing of what was left out."""
        facts: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value == each.default:
                continue
            if isinstance(value, tuple):
                value = list(value)
            facts[each.name] = os.fspath(value) if isinstance(value, os.PathLike) else value
        return facts


@dataclass(frozen=True)
class Settings:
    """The resolved choices; make one with `Settings.resolve`.

    Attributes:
        url: address of the server without a final slash, or "offline".
        api_key: sent as bearer token.
        update_freq: "batch", "epoch", or a number of batches, as in Keras' own callbacks.
        spool_dir: folder in which what was measured waits until the server has it.
        keep_spool: keep the spool of a run that was delivered completely.
        close_timeout: seconds that the end of training may take at most.
        audit_budget: share of the training time so far that audits of the sample may take; 0: none.
        verbose: print one line when a run begins and one when it ends.
    """

    url: str
    project: str
    run_name: str | None
    run_id: str | None
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    api_key: str | None = field(repr=False)
    expect: Expect
    on_alert: OnAlert
    update_freq: str | int
    spool_dir: Path
    keep_spool: bool
    close_timeout: float
    audit_budget: float
    verbose: bool

    @property
    def is_offline(self) -> bool:
        return self.url == OFFLINE

    @property
    def spare_spool_dir(self) -> Path:
        """Where to spool when `spool_dir` cannot be written, as in containers without a home."""
        return Path(tempfile.gettempdir()) / f"trainsanity-spool-{_user()}"

    @classmethod
    def resolve(
        cls,
        url: str | None = None,
        *,
        project: str = "default",
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        expect: Expect | None = None,
        on_alert: OnAlert = "warn",
        update_freq: str | int = "batch",
        spool_dir: str | os.PathLike[str] | None = None,
        keep_spool: bool = False,
        close_timeout: float = 10.0,
        audit_budget: float = 0.05,
        verbose: bool | int = True,
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Checks the callback's arguments and fills in what was left out.

        Raises:
            SettingsError: names the argument, the value received and what to do.
        """
        if expect is not None:
            _check("expect", expect, (Expect,), "an Expect(...)")
        _check("keep_spool", keep_spool, (bool,), "True or False")
        _check("verbose", verbose, (bool, int), "True or False")
        return cls(
            url=_url(url, environ),
            project=_text("project", project),
            run_name=None if run_name is None else _text("run_name", run_name),
            run_id=None if run_id is None else _run_id(run_id),
            tags=_texts("tags", tags),
            config=_config(config),
            api_key=_api_key(api_key, environ),
            expect=expect or Expect(),
            on_alert=_on_alert(on_alert),
            update_freq=_update_freq(update_freq),
            spool_dir=_spool_dir(spool_dir, environ),
            keep_spool=keep_spool,
            close_timeout=_seconds("close_timeout", close_timeout),
            audit_budget=_share("audit_budget", audit_budget),
            verbose=bool(verbose),
        )


def _warn_of_unknown_rules(slugs: Sequence[str]) -> None:
    """No error: a server may be newer and know more rules than this client."""
    if not slugs:
        return
    from trainsanity.rules import all_rules  # they take their time, which most fits need not wait

    known = [rule.id for rule in all_rules()]
    for slug in slugs:
        if slug not in known:
            near = get_close_matches(slug, known, n=1)
            hint = f"Is {near[0]!r} meant?" if near else "`trainsanity rules` lists all."
            log.warning("Expect(ignore=...) names the rule %r, which is unknown. %s", slug, hint)


def _user() -> str:
    # Folders for temporary files are shared; names of users may be unknown in a container.
    return str(os.getuid()) if hasattr(os, "getuid") else "own"


def url_option(url: str, environ: Mapping[str, str] = os.environ) -> str:
    """` --url ...` for a command that would not go to this address by itself, else ""."""
    if url in (OFFLINE, (environ.get("TRAINSANITY_URL") or DEFAULT_URL).strip().rstrip("/")):
        return ""
    return f" --url {shlex.quote(url)}"


def _url(value: str | None, environ: Mapping[str, str]) -> str:
    source = "url" if value is not None else "TRAINSANITY_URL"
    chosen = value if value is not None else environ.get("TRAINSANITY_URL") or DEFAULT_URL
    _check(source, chosen, (str,), f"the server's address, e.g. {DEFAULT_URL!r}, or 'offline'")
    received, chosen = chosen, chosen.strip().rstrip("/")
    if chosen == OFFLINE:
        return chosen
    try:
        parts = urlsplit(chosen)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise SettingsError(
            f"{source} must be 'offline' or an address that begins with http:// or https://, "
            f"e.g. {DEFAULT_URL!r}. Received: {source}={received!r}"
        )
    if parts.username is not None or parts.password is not None:
        raise SettingsError(
            f"{source} must not carry a user or password: give the key as api_key or in "
            f"TRAINSANITY_API_KEY. Received: an address at {parts.hostname!r} with credentials"
        )
    if parts.query or parts.fragment:
        raise SettingsError(
            f"{source} must end with the host or a path: leave out what follows '?' or '#'. "
            f"Received: {source}={chosen!r}"
        )
    return chosen


def _run_id(value: str) -> str:
    try:
        return str(uuid.UUID(_text("run_id", value)))
    except ValueError as error:
        raise SettingsError(
            f"run_id must be a UUID; leave it out to get a new one. Received: run_id={value!r}"
        ) from error


def _api_key(value: str | None, environ: Mapping[str, str]) -> str | None:
    chosen = value if value is not None else environ.get("TRAINSANITY_API_KEY")
    if not chosen:
        return None
    # The key itself stays out of the message: messages end up in logs.
    if not isinstance(chosen, str) or not chosen.isascii() or not chosen.isprintable():
        raise SettingsError(
            "api_key must be text of printable ASCII characters as the server printed it. "
            f"Received: a {type(chosen).__name__} of another kind"
        )
    return chosen.strip()


def _on_alert(value: OnAlert) -> OnAlert:
    if callable(value) or value in ON_ALERT:
        return value
    raise SettingsError(
        f"on_alert must be one of {ON_ALERT} or a function that takes the alert. "
        f"Received: on_alert={value!r}"
    )


def _update_freq(value: str | int) -> str | int:
    if value in ("batch", "epoch"):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise SettingsError(
        "update_freq must be 'batch', 'epoch' or a number of batches of at least 1. "
        f"Received: update_freq={value!r}"
    )


def _spool_dir(value: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path:
    chosen = value if value is not None else environ.get("TRAINSANITY_SPOOL_DIR") or None
    if chosen is None:
        return Path(platformdirs.user_state_dir("trainsanity", appauthor=False)) / "spool"
    _check("spool_dir", chosen, (str, os.PathLike), "the path of a folder")
    return Path(chosen).expanduser()


def _config(value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is None:
        return {}
    _check("config", value, (Mapping,), "a dict")
    plain: dict[str, Any] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    """Plain data of it without secrets; what is neither plain nor a container becomes its text."""
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if is_secret(str(key), each) else _plain(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:  # what the wire can carry
        return int(value)
    return str(value).encode("utf-8", "replace").decode()


def _seconds(name: str, value: float) -> float:
    _check(name, value, (int, float), "a number of seconds")
    if isinstance(value, bool) or not 0 <= value < float("inf"):
        raise SettingsError(f"{name} must be 0 or more seconds. Received: {name}={value!r}")
    return float(value)


def _share(name: str, value: float) -> float:
    _check(name, value, (int, float), "a share between 0 and 1")
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise SettingsError(f"{name} must be between 0 and 1. Received: {name}={value!r}")
    return float(value)


def _text(name: str, value: str) -> str:
    _check(name, value, (str,), "text")
    if not value.strip() or len(value) > 256:
        raise SettingsError(f"{name} must have 1 to 256 characters. Received: {name}={value!r}")
    return value.strip()


def _texts(name: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise SettingsError(
            f"{name} must be a tuple or list of texts: write {name}=({value!r},). "
            f"Received: {name}={value!r}"
        )
    _check(name, value, (Sequence, set, frozenset), "a tuple or list of texts")
    return tuple(_text(f"each of {name}", each) for each in value)


def _check_whole(name: str, value: int | None, least: int | None) -> None:
    _check(name, value, (int, type(None)), "a whole number or None")
    if isinstance(value, bool) or (value is not None and least is not None and value < least):
        raise SettingsError(f"{name} must be {least or 0} or more. Received: {name}={value!r}")


def _check(name: str, value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise SettingsError(f"{name} must be {wanted}. Received: {name}={value!r}")
