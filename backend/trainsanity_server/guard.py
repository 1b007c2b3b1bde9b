"""What every request passes before anything else looks at it, and every answer on its way out."""

from __future__ import annotations

import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainsanity.wire import MAX_PACKET_BYTES
from trainsanity_server import problems
from trainsanity_server.access import allowed_names, is_allowed_host
from trainsanity_server.errors import (
    ForbiddenError,
    MisdirectedError,
    ServerError,
    TooLargeError,
)
from trainsanity_server.metrics import Metrics
from trainsanity_server.settings import PREFIX, Settings

# Of what is no page: those bring a stricter one, see `pages/render.py`. The worker that holds the
# live stream is ruled by the policy that its own file came with.
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """An ASGI middleware: names, origins, sizes, headers, and the count of requests."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._names = allowed_names(settings)
        self._public = urlsplit(settings.base_url).netloc
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        outlet = _Outlet(send, scope["method"], self._metrics)
        try:
            self._check(Headers(scope=scope), scope["method"])
        except ServerError as error:
            response: Response = problems.server_error(None, error)
            await response(scope, receive, outlet)
            return
        await self._app(scope, _Inlet(receive), outlet)

    def _check(self, headers: Headers, method: str) -> None:
        host = headers.get("host", "")
        if not is_allowed_host(host, self._names):
            name = urlsplit(f"//{host}").hostname or host
            raise MisdirectedError(
                f"this server does not answer to the name {name!r}. If it should, add it to "
                f"{PREFIX}ALLOWED_HOSTS, or put its address into {PREFIX}BASE_URL, and restart"
            )
        if method not in SAFE_METHODS and not is_own(headers, (host, self._public)):
            raise ForbiddenError(
                "a page of another site may not change anything here. "
                f"Received: Origin {headers.get('origin', 'unknown')}"
            )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_PACKET_BYTES:
            raise _too_large(length)


def is_own(headers: Headers, hosts: Collection[str]) -> bool:
    """Whether a change was asked for by a page of this server, or by no page at all.

    Every browser says where a request came from, and no page can change that.

    Args:
        hosts: names of this server; a proxy may ask by another one than people do.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc in hosts


def _too_large(received: object) -> TooLargeError:
    return TooLargeError(
        f"a body holds at most {MAX_PACKET_BYTES} bytes. Received: {received} bytes or more"
    )


class _Inlet:
    """Stops reading a body that has grown too large without having said so."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > MAX_PACKET_BYTES:
            raise _too_large(self._size)
        return message


class _Outlet:
    """Adds headers, and counts."""

    def __init__(self, send: Send, method: str, metrics: Metrics) -> None:
        self._send = send
        self._method = method
        self._metrics = metrics
        self._begin = time.perf_counter()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            method = self._method if self._method.isalpha() else "other"
            self._metrics.requests.labels(method, message["status"]).inc()
            self._metrics.seconds.labels(method).observe(time.perf_counter() - self._begin)
        await self._send(message)
