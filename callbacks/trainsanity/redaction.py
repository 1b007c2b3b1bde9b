"""Which settings are secrets and never leave the process."""

from __future__ import annotations

import itertools
import re
from typing import Any

HIDDEN = "(hidden)"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRETS = frozenset(
    [
        "apikey",
        "authorization",
        "credential",
        "credentials",
        "dsn",
        "passphrase",
        "passwd",
        "password",
        "pwd",
        "secret",
        "secrets",
        "token",
        "webhook",
    ]
)
_KEYS = frozenset(["access", "api", "encryption", "private", "secret", "signing", "ssh"])


def is_secret(key: str, value: Any) -> bool:
    """Whether the name says that this text is a secret: `hf_token`, `apiKey`, `db.password`.

    Numbers are none, so that `max_token` and the like can be seen.
    """
    if not isinstance(value, (str, bytes)):
        return False
    words = [word.lower() for word in _WORD.findall(key)]
    followed = itertools.pairwise(words)
    return not _SECRETS.isdisjoint(words) or any(a in _KEYS and b == "key" for a, b in followed)
