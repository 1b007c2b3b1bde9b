"""A path before every page, where a proxy serves several programs under one host."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

from trainsanity_server.errors import StartupError


class PathPrefix:
    """An ASGI middleware: pages are found with the prefix and without it.

    So it does not matter whether the proxy takes the prefix off, and whoever asks this server
    itself, as health checks do, needs none.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # ASGI wants the prefix in both: routes are looked up by what `path` has beyond it.
            scope["root_path"] = self._prefix
            scope["path"] = self._prefix + self._beyond(scope["path"])
        await self._app(scope, receive, send)

    def _beyond(self, path: str) -> str:
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            path = path.removeprefix(self._prefix)
        return path or "/"


def install(app: FastAPI, prefix: str) -> None:
    """After all routes are known.

    Raises:
        StartupError: a path could be meant with and without the prefix.
    """
    app.state.path_prefix = prefix
    own = {str(route.path).split("/")[1] for route in iter_route_contexts(app.routes)}
    first = prefix.split("/")[1] if prefix else ""
    if first and first in own:
        raise StartupError(
            f"the path of TRAINSANITY_BASE_URL must not begin with /{first}, where this server has "
            f"pages of its own; /sanity would do. Received: {prefix}"
        )
    app.add_middleware(PathPrefix, prefix=prefix)
