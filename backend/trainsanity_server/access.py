"""Who may come in: keys, and the names under which the server answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi import Request

from trainsanity_server.errors import UnauthorizedError
from trainsanity_server.settings import Settings

COOKIE = "trainsanity_key"


class Keys:
    """The keys that open this server; none: everybody may come in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: str) -> bool:
        """Compares in constant time."""
        given = _digest(key)
        # No early end: the time must not tell which key came near.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def key_of(request: Request) -> str | None:
    """The key in `Authorization: Bearer <key>`, or in the cookie that a page has set."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.cookies.get(COOKIE)


def is_welcome(request: Request) -> bool:
    keys: Keys = request.app.state.keys
    if not keys:
        return True
    key = key_of(request)
    return key is not None and keys.accept(key)


async def require_key(request: Request) -> None:
    """Raises UnauthorizedError."""
    if is_welcome(request):
        return
    if key_of(request) is None:
        raise UnauthorizedError(
            "this server asks for a key: send `Authorization: Bearer <key>` "
            "(SanityCallback(api_key=...) or TRAINSANITY_API_KEY). Received: no key"
        )
    raise UnauthorizedError(
        "the key is not one of those in the server's TRAINSANITY_API_KEYS. Received: a wrong key"
    )


def allowed_names(settings: Settings) -> set[str]:
    """Names under which the server answers, besides any address in digits."""
    own = urlsplit(settings.base_url).hostname or ""
    return {"localhost", own.lower(), *(name.lower() for name in settings.allowed_hosts)} - {""}


def is_allowed_host(host: str, names: set[str]) -> bool:
    """Whether the `Host` header is one that a stranger's page cannot have made up.

    Such a page needs a name that first leads elsewhere and then here: digits are harmless.
    """
    name = urlsplit(f"//{host}").hostname or ""
    if "*" in names or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
